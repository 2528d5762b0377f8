package roleserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"ucloud-im/internal/config"
	"ucloud-im/internal/drivelookup"
	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/products"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap"
)

// buildStorage makes the catalogue of products and the planner of drives.
func (s *server) buildStorage(ctx context.Context) error {
	cfg := s.config.Load()
	catalogue, err := newCatalogue(cfg)
	if err != nil {
		return err
	}
	s.products, err = products.NewDeclarer(catalogue, products.DeclarerOptions{
		Core: s.client, Store: s.store, Retry: backoff(cfg), OnDeclared: s.categoryDeclared, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.declared = make(chan struct{})
	if err := s.buildManagement(cfg); err != nil {
		return err
	}
	return s.products.Load(ctx)
}

// categoryDeclared is told that drives may be registered in a category. The first one opens the event stream.
func (s *server) categoryDeclared(string) {
	s.declaredOnce.Do(func() { close(s.declared) })
	s.drives.ChangedAll()
}

// newCatalogue gives the products of the configuration.
func newCatalogue(cfg *config.Config) (*products.Catalog, error) {
	o := products.Options{
		Provider: cfg.Provider.ID.String(), Compute: computeProducts(cfg),
		Features: products.Features{
			Trash: cfg.Files.Trash.Enabled, StreamingSearch: true, Terminal: cfg.Terminal.Enabled, JobTerminal: cfg.Terminal.Enabled, Logs: true,
		},
	}
	for name, fs := range cfg.Services.FileSystems.All() {
		o.Storage = append(o.Storage, products.Storage{
			Name: name, ReadOnly: allReadOnly(fs), UserDrives: fs.UserDrives != nil,
			Payment: products.Payment{
				Unit: fs.Payment.Unit, Interval: products.Interval(fs.Payment.Interval), Currency: fs.Payment.Currency,
				Price: fs.Payment.Price.Millionths(),
			},
		})
	}
	jobFeatures(cfg, &o.Features)
	return products.NewCatalog(o)
}

// userDrives tells where users may make drives, by the configuration as it is now.
func (s *server) userDrives(category string) (drivelookup.UserDrives, bool) {
	fs, ok := s.config.Load().Services.FileSystems.Get(category)
	if !ok || fs.UserDrives == nil {
		return drivelookup.UserDrives{}, false
	}
	return drivelookup.UserDrives{Locators: fs.UserDrives.Locators, Directory: fs.UserDrives.Directory}, true
}

// allReadOnly tells whether nobody may write in any drive of a file system: only then Core can be told.
func allReadOnly(fs *config.FileSystem) bool {
	for _, l := range fs.DriveLocators.All() {
		if !l.ReadOnly {
			return false
		}
	}
	return fs.DriveLocators.Len() > 0
}

// accountsOf tells the planner who users and projects are on this machine.
type accountsOf struct {
	users  *usermap.Service
	policy *localuser.Policy
	store  *store.Store
}

// LocalAccount implements [driveplan.Accounts].
func (a accountsOf) LocalAccount(ctx context.Context, u ident.UCloudUser) (driveplan.Account, bool, error) {
	b, ok := a.users.Account(u)
	if !ok {
		return driveplan.Account{}, false, nil
	}
	checked, err := a.policy.Check(ctx, b.UID, b.LocalName)
	if failure.Is(err, failure.Forbidden) || failure.Is(err, failure.NotFound) {
		return driveplan.Account{}, false, nil
	}
	if err != nil {
		return driveplan.Account{}, false, err
	}
	account := checked.Account()
	out := driveplan.Account{Name: account.Name, UID: account.UID}
	group, err := a.policy.Directory().GroupByID(ctx, account.GID)
	switch {
	case failure.Is(err, failure.NotFound): // a numeric group without a name: the variable stays unknown
	case err != nil:
		return driveplan.Account{}, false, err
	default:
		out.PrimaryGroup = group.Name
	}
	return out, true, nil
}

// ProjectGroup implements [driveplan.Accounts].
func (a accountsOf) ProjectGroup(ctx context.Context, p ident.ProjectID) (group driveplan.Group, found bool, err error) {
	var gid ident.GID
	err = a.store.View(ctx, func(tx *store.Tx) (err error) { gid, _, err = tx.ProjectGroup(p); return err })
	if errors.Is(err, store.ErrNotFound) {
		return driveplan.Group{}, false, nil
	}
	if err != nil {
		return driveplan.Group{}, false, err
	}
	// The number is what was mapped; a group may get another name.
	now, err := a.policy.Directory().GroupByID(ctx, gid)
	switch {
	case failure.Is(err, failure.NotFound):
		return driveplan.Group{}, false, nil // it was removed: no drive can be made for it
	case err != nil:
		return driveplan.Group{}, false, err
	}
	return driveplan.Group{Name: now.Name, GID: gid}, true, nil
}

// driveStatus counts the drives by state.
func (s *server) driveStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "drives", Health: ipcapi.HealthOK}
	counts := map[store.DriveState]int{}
	err := s.store.View(ctx, func(tx *store.Tx) error {
		clear(counts)
		drives, err := tx.Drives()
		for _, d := range drives {
			counts[d.State]++
		}
		return err
	})
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	}
	p.Summary = strconv.Itoa(counts[store.DriveRegistered]) + " registered"
	for _, state := range []store.DriveState{store.DriveDesired, store.DrivePrepared, store.DriveRegistering, store.DriveSuspect, store.DriveFailed} {
		if counts[state] > 0 {
			p.Facts = append(p.Facts, fact(string(state), counts[state]))
		}
	}
	if n := counts[store.DriveSuspect] + counts[store.DriveFailed]; n > 0 {
		p.Health = ipcapi.HealthError
		p.Summary += fmt.Sprintf(", %d need a decision", n)
	}
	return p
}

// quotaStatus says how the hook onQuotaUpdated goes.
func (s *server) quotaStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "quotas", Health: ipcapi.HealthOK, Summary: "all are set"}
	st, err := s.quotas.Status(ctx)
	switch {
	case err != nil:
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	case st.Parked > 0:
		p.Health, p.Summary = ipcapi.HealthError, fmt.Sprintf("%d wait for you: %s", st.Parked, st.Error)
	case st.Failing > 0:
		p.Health, p.Summary = ipcapi.HealthWarning, fmt.Sprintf("%d are not set and tried again: %s", st.Failing, st.Error)
	}
	p.Facts = append(p.Facts, fact("failing", st.Failing), fact("waitForYou", st.Parked))
	return p
}

// usageStatus says how measuring and reporting go.
func (s *server) usageStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "usage", Health: ipcapi.HealthOK}
	st, err := s.usage.Status(ctx)
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
		return p
	}
	p.Summary = fmt.Sprintf("%d drives measured, %d totals reported", st.Measured, st.Reported)
	if st.Missing+st.Refused > 0 {
		p.Health = ipcapi.HealthWarning
		p.Summary += fmt.Sprintf("; %d drives cannot be measured, Core refuses %d totals: %s", st.Missing, st.Refused, st.Error)
	}
	p.Facts = append(p.Facts, fact("measured", st.Measured), fact("missing", st.Missing), fact("reported", st.Reported), fact("refused", st.Refused))
	return p
}
