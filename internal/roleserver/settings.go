package roleserver

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/integration"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/launcher"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
)

// groupLookup gives the rules of the configuration the name service's view of groups.
func groupLookup(ctx context.Context, d *localuser.Directory) func(string) (config.Group, bool, error) {
	return func(name string) (config.Group, bool, error) {
		g, err := d.Group(ctx, name)
		if failure.Is(err, failure.NotFound) {
			return config.Group{}, false, nil
		}
		if err != nil {
			return config.Group{}, false, err
		}
		return config.Group{GID: int(g.GID), Members: g.Members}, true, nil
	}
}

// setUpLogs makes the loggers. The journal takes what stands on standard error, priorities included in the text.
func (s *server) setUpLogs() {
	cfg := s.config.Load()
	s.setLevel(cfg)
	s.log = s.o.Log
	if s.log == nil {
		s.log = observability.NewLogger(os.Stderr, observability.LogOptions{JSON: cfg.Logs.Format == "json", Level: &s.level})
	}
	s.audit = s.log
}

func (s *server) setLevel(cfg *config.Config) {
	s.level.Set(observability.ParseLevel(cfg.Logs.Level))
}

func storeOptions(cfg *config.Config, log *slog.Logger) (store.Options, error) {
	d := cfg.Database
	o := store.Options{
		Driver: store.DriverSQLite, Path: d.Path.String(), MaxConns: d.MaxConnections, Exclusive: true, Log: log,
		ConnectTimeout: time.Duration(d.ConnectTimeout), StatementTimeout: time.Duration(d.StatementTimeout),
	}
	if d.Type != config.Postgres {
		return o, nil
	}
	login := cfg.Server.Database
	if login == nil {
		return o, errors.New("database.type is postgres and server.yml has no database")
	}
	o.Driver, o.Path = store.DriverPostgres, ""
	o.Postgres = store.Postgres{
		Host: login.Host.Address, Port: login.Host.Port, Database: login.Database, User: login.Username,
		Password: login.Password.Value(), SSLMode: login.SSLMode, CAFile: login.CAFile.String(),
		ClientCert: login.ClientCertificate.String(), ClientKey: login.ClientKey.File(),
	}
	return o, nil
}

func backoff(cfg *config.Config) coreapi.Backoff {
	return coreapi.Backoff{Initial: time.Duration(cfg.Provider.Core.Retry.Initial), Max: time.Duration(cfg.Provider.Core.Retry.Max)}
}

// startDocument is the part of an instance's start-up document that comes from the configuration: reduced and without
// secrets (contract 40 CFG-8).
func startDocument(cfg *config.Config) ipcapi.Start {
	u := cfg.UserInstances
	start := ipcapi.Start{
		Provider: cfg.Provider.ID.String(), Umask: int(u.Umask), MemoryBytes: u.Limits.Memory.Bytes(),
		Tasks: u.Limits.Tasks, OpenFiles: u.Limits.OpenFiles, LogLevel: cfg.Logs.Level,
		IdleTimeoutMs: time.Duration(u.IdleTimeout).Milliseconds(), DrainTimeoutMs: time.Duration(u.DrainTimeout).Milliseconds(),
		ServerLossGraceMs: time.Duration(u.ServerLossGrace).Milliseconds(),
		Files: ipcapi.FilesSettings{
			FollowSymlinks: cfg.Files.FollowSymlinks, MaxBrowseEntries: cfg.Files.MaxBrowseEntries,
			TrashEnabled: cfg.Files.Trash.Enabled, Unmanaged: !cfg.Managed(),
			TrashRetentionMs: time.Duration(cfg.Files.Trash.Retention).Milliseconds(),
			SearchMaxResults: cfg.Files.SearchMaxResults, SearchTimeoutMs: time.Duration(cfg.Files.SearchTimeout).Milliseconds(),
			SearchExclude: cfg.Files.SearchExclude,
		},
		Links: ipcapi.LinkSettings{
			PublicURL: cfg.Provider.Hosts.SelfPublic.URL(), Origins: []string{cfg.Provider.Hosts.UCloudPublic.URL()},
			UploadStreams: cfg.Files.Upload.MaxParallel, UploadBytes: cfg.Files.Upload.InFlight.Bytes(),
			NoDirectories: !cfg.Files.Download.Directories, NoRanges: !cfg.Files.Download.Ranges,
		},
	}
	if slurm := cfg.Services.Slurm; slurm != nil {
		start.Files.JobFolder = slurm.JobFolder
	}
	start.Transfers = transferSettings(cfg)
	start.Jobs = jobSettings(cfg)
	addInteractive(cfg, &start.Jobs)
	return start
}

// uploadLimits are the limits of links for uploads: how long one lives unused, and how long at all.
func uploadLimits(cfg *config.Config) onetime.Limits {
	u := cfg.Files.Upload
	return onetime.Limits{Total: time.Duration(u.TokenLifetime), Idle: time.Duration(u.TokenIdle), Uses: onetime.Unlimited}
}

// downloadLimits are the limits of links for downloads. A link that is never out of use for long ends all the same.
func downloadLimits(cfg *config.Config) onetime.Limits {
	d := cfg.Files.Download
	return onetime.Limits{
		Total:    max(onetime.DownloadLimits.Total, time.Duration(d.TokenLifetime)+time.Duration(d.TokenInUse)),
		FirstUse: time.Duration(d.TokenLifetime), Idle: time.Duration(d.TokenInUse), Uses: onetime.Unlimited,
	}
}

// transferSettings are the settings of transfers for instances.
func transferSettings(cfg *config.Config) ipcapi.TransferSettings {
	t := cfg.Transfers
	out := ipcapi.TransferSettings{
		Outgoing: t.Enabled && t.Outgoing, Incoming: t.Enabled && t.Incoming, Peers: t.AllowedPeers, MaxBytes: t.MaxSize.Bytes(),
		Connections: t.Connections, Ports: t.Ports, Plain: cfg.Development.Enabled,
	}
	for _, n := range t.AllowedNetworks {
		out.Networks = append(out.Networks, n.String())
	}
	if file := t.CAFile.String(); file != "" {
		// The service account may read it, and users need not. Without it connections fail, which says so.
		roots, err := os.ReadFile(file)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(roots) {
			err = errors.New(file + " holds no certificate")
		}
		if err != nil {
			slog.Error("the trust anchors for transfers cannot be used, only those of the system are", "error", err)
			roots = nil
		}
		out.Roots = string(roots)
	}
	return out
}

func maintenance(cfg *config.Config) integration.Maintenance {
	m := cfg.Provider.Maintenance
	out := integration.Maintenance{Enabled: m.Enabled, Message: m.Message}
	for _, name := range m.AllowList {
		out.Allow = append(out.Allow, ident.UCloudUser(name))
	}
	return out
}

// brandingConfig reads the texts that the configuration names.
func brandingConfig(cfg *config.Config) (integration.BrandingConfig, error) {
	b := cfg.Provider.Branding
	if b == nil {
		return integration.BrandingConfig{}, nil
	}
	var problems []error
	text := func(p config.Path) string {
		if p.String() == "" {
			return ""
		}
		data, err := os.ReadFile(p.String())
		problems = append(problems, err)
		return string(data)
	}
	out := integration.BrandingConfig{
		Title: b.Title, ShortTitle: b.ShortTitle, ShortDescription: b.ShortDescription, URL: b.URL.String(),
		Description: text(b.Description), Logo: b.Logo.String(),
	}
	for _, sec := range b.Sections {
		out.Sections = append(out.Sections, integration.BrandingSection{Description: text(sec.Description), Image: sec.Image.String()})
	}
	for _, p := range b.ProductDescriptions {
		out.Products = append(out.Products, integration.BrandingProduct{
			Category: p.Category, ShortDescription: p.ShortDescription,
			Section: integration.BrandingSection{Description: text(p.Section.Description), Image: p.Section.Image.String()},
		})
	}
	return out, errors.Join(problems...)
}

// ticketPage are the texts of the ticket page.
func ticketPage(cfg *config.Config) (integration.PageOptions, error) {
	manual := cfg.Services.Identity.Manual
	o := integration.PageOptions{Contact: manual.Tickets.Contact, SelfService: manual.SelfService}
	if b := cfg.Provider.Branding; b != nil {
		o.Title = b.Title
	}
	if file := manual.Tickets.Instructions.String(); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return o, err
		}
		o.Instructions = string(data)
	}
	return o, nil
}

// findCgroup finds the cgroup for instances. Without one they run all the same.
func (s *server) findCgroup(cfg *config.Config) (path string, limits bool) {
	if cfg.UserInstances.Cgroup == "off" || cfg.UserInstances.Launcher == config.LauncherSelf {
		return "", false
	}
	path, limits, err := launcher.FindCgroup()
	if err != nil {
		s.log.Info("limits of instances are those of each process", "reason", err)
	}
	return path, limits
}

// instanceLimits are the limits of each instance and of all together.
func instanceLimits(cfg *config.Config) (each, total launcher.Limits) {
	l, t := cfg.UserInstances.Limits, cfg.UserInstances.TotalLimits
	return launcher.Limits{Memory: l.Memory.Bytes(), CPU: int(l.CPU), Tasks: int64(l.Tasks)},
		launcher.Limits{Memory: t.Memory.Bytes(), CPU: 100 * t.Cores, Tasks: int64(t.Tasks)}
}
