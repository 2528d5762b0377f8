package roleserver

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/events"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/products"
)

// status is what `ucloud status` shows.
func (s *server) status(ctx context.Context) ipcapi.StatusReport {
	cfg := s.config.Load()
	report := ipcapi.StatusReport{
		Health: ipcapi.HealthOK, Provider: cfg.Provider.ID.String(), Version: s.o.Version, Development: cfg.Development.Enabled,
	}
	if m := cfg.Provider.Maintenance; m.Enabled {
		report.Maintenance = m.Message
		if report.Maintenance == "" {
			report.Maintenance = "on"
		}
	}
	for _, part := range []func(context.Context) ipcapi.StatusPart{
		s.coreStatus, s.eventStatus, s.productStatus, s.databaseStatus, s.gatewayStatus, s.instanceStatus, s.userStatus,
		s.driveStatus, s.quotaStatus, s.usageStatus, s.jobStatus, s.accountStatus, s.chargeStatus, s.deliveryStatus,
	} {
		p := part(ctx)
		report.Health = report.Health.Worse(p.Health)
		report.Parts = append(report.Parts, p)
	}
	more := []ipcapi.StatusPart{s.userHookStatus(ctx)}
	if s.oidc != nil {
		more = append(more, s.loginStatus())
	}
	if s.static != nil {
		more = append(more, s.accountFileStatus())
	}
	for _, p := range more {
		report.Health = report.Health.Worse(p.Health)
		report.Parts = append(report.Parts, p)
	}
	return report
}

func fact(name string, value any) ipcapi.Fact {
	if t, ok := value.(time.Time); ok {
		if t.IsZero() {
			return ipcapi.Fact{Name: name, Value: "never"}
		}
		return ipcapi.Fact{Name: name, Value: t.UTC().Format(time.RFC3339)}
	}
	return ipcapi.Fact{Name: name, Value: fmt.Sprint(value)}
}

func (s *server) coreStatus(context.Context) ipcapi.StatusPart {
	t := s.core.Status()
	p := ipcapi.StatusPart{Name: "core", Health: ipcapi.HealthOK, Summary: "a valid access token", Facts: []ipcapi.Fact{
		fact("state", t.State), fact("tokenExpires", t.ExpiresAt), fact("tokenRenewed", t.RenewedAt),
	}}
	switch t.State {
	case coreapi.TokenOK:
	case coreapi.TokenNone:
		p.Health, p.Summary = ipcapi.HealthWarning, "Core has not been asked yet"
	case coreapi.TokenRevoked:
		p.Health, p.Summary = ipcapi.HealthError, "Core refuses the refresh token: put the present one into server.yml and reload"
	default:
		p.Health, p.Summary = ipcapi.HealthError, "no access token: "+t.LastError
	}
	return p
}

func (s *server) eventStatus(context.Context) ipcapi.StatusPart {
	e := s.events.Status()
	p := ipcapi.StatusPart{Name: "events", Health: ipcapi.HealthOK, Summary: "connected", Facts: []ipcapi.Fact{
		fact("state", e.State), fact("since", e.ConnectedSince), fact("lastMessage", e.LastMessage), fact("lastEvent", e.LastEvent),
		fact("lag", e.Lag), fact("records", e.Records), fact("lastFullReplay", e.LastFullReplay),
	}}
	if e.State != events.StateUp {
		p.Health, p.Summary = ipcapi.HealthWarning, "not connected"
		if e.LastError != "" {
			p.Summary += ": " + e.LastError
		}
	}
	return p
}

func (s *server) productStatus(context.Context) ipcapi.StatusPart {
	categories, err := s.products.Status()
	p := ipcapi.StatusPart{Name: "products", Health: ipcapi.HealthOK, Summary: strconv.Itoa(len(categories)) + " categories"}
	if err != nil {
		p.Health, p.Summary = ipcapi.HealthWarning, err.Error()
	}
	for _, c := range categories {
		p.Facts = append(p.Facts, fact(c.Category, strings.TrimSpace(string(c.State)+" "+c.Problem)))
		switch c.State {
		case products.Differs, products.Refused:
			p.Health, p.Summary = ipcapi.HealthError, c.Category+": "+c.Problem
		case products.Unknown:
			p.Health = p.Health.Worse(ipcapi.HealthWarning)
		}
	}
	return p
}

func (s *server) databaseStatus(ctx context.Context) ipcapi.StatusPart {
	p := ipcapi.StatusPart{Name: "database", Health: ipcapi.HealthOK, Summary: s.config.Load().Database.Type}
	start := time.Now()
	if err := s.store.Ping(ctx); err != nil {
		p.Health, p.Summary = ipcapi.HealthError, "does not answer"
		return p
	}
	p.Facts = append(p.Facts, fact("answersIn", time.Since(start).Round(time.Microsecond)))
	if v, err := s.store.SchemaVersion(ctx); err == nil {
		p.Facts = append(p.Facts, fact("schema", v))
	}
	return p
}

func (s *server) gatewayStatus(context.Context) ipcapi.StatusPart {
	n := s.launcher.Counters().Gateways
	p := ipcapi.StatusPart{Name: "gateway", Health: ipcapi.HealthOK, Summary: strconv.Itoa(n) + " connected"}
	if n == 0 {
		p.Health = ipcapi.HealthError
	}
	if state, err := s.launcher.Gateways(false); err == nil {
		for _, g := range state.Gateways {
			p.Facts = append(p.Facts, fact("sandbox", g.Sandbox))
		}
	}
	return p
}

func (s *server) instanceStatus(context.Context) ipcapi.StatusPart {
	c := s.launcher.Counters()
	p := ipcapi.StatusPart{Name: "instances", Health: ipcapi.HealthOK, Summary: strconv.Itoa(c.Instances) + " running", Facts: []ipcapi.Fact{
		fact("launches", c.Launches), fact("failures", c.LaunchFailures), fact("refused", c.Refused), fact("crashes", c.Crashes),
		fact("crashLoops", c.CrashLoops), fact("hung", c.Hung), fact("kills", c.Kills), fact("adopted", c.Adopted),
		fact("idleStops", c.IdleStops), fact("replaced", c.Replaced), fact("limitedBy", s.launcher.LimitedBy()),
	}}
	if c.Unkillable > 0 {
		p.Health, p.Summary = ipcapi.HealthError, fmt.Sprintf("%d instances could not be ended: end them as root", c.Unkillable)
	}
	return p
}

func (s *server) userStatus(context.Context) ipcapi.StatusPart {
	return ipcapi.StatusPart{Name: "users", Health: ipcapi.HealthOK, Summary: strconv.Itoa(s.users.Active()) + " connected"}
}

func (s *server) deliveryStatus(ctx context.Context) ipcapi.StatusPart {
	queued, suspect, err := s.outboxCounts(ctx)
	p := ipcapi.StatusPart{Name: "deliveries", Health: ipcapi.HealthOK, Summary: strconv.Itoa(queued) + " waiting"}
	switch {
	case err != nil:
		p.Health, p.Summary = ipcapi.HealthError, "cannot be counted"
	case suspect > 0:
		p.Health = ipcapi.HealthError
		p.Summary += fmt.Sprintf(", %d need a decision: their outcome at Core is unknown", suspect)
	}
	return p
}
