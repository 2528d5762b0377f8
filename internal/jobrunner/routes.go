package jobrunner

import (
	"context"
	"net/http"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/fileserver"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
)

// Limits of request bodies in bytes. A job comes with its whole application; calls of one job have it once, others may have
// it many times.
const (
	oneBody  = 2 << 20
	bulkBody = 16 << 20
)

// OpenTerminalIntent is what users sign to open a terminal in a folder, which is a call about jobs that needs none.
var OpenTerminalIntent = intent.Rule{Calls: []string{"jobs.openTerminalInFolder"}, Unsigned: true, Drives: []string{"items[].folder"}}

// Routes are the calls of Core about jobs (contract 20 section 2), but the two WebSockets.
func (r *Runner) Routes() []fileserver.Route {
	route := func(path string, limit int64, serve func(http.ResponseWriter, *fileserver.Call) error, rule intent.Rule) fileserver.Route {
		return fileserver.Route{Method: http.MethodPost, Path: path, Class: hoptoken.ClassCore, MaxBody: limit, Serve: serve, Intent: rule}
	}
	const each = "items[].job"
	signed := func(call string, owners ...string) intent.Rule {
		return intent.Rule{Calls: []string{call}, Owners: owners}
	}
	unsigned := func(calls []string, owners ...string) intent.Rule {
		return intent.Rule{Calls: calls, Unsigned: true, Owners: owners}
	}
	return []fileserver.Route{
		route("jobs", oneBody, r.serveCreate, signed("jobs.create", "items[]")),
		route("jobs/terminate", bulkBody, bulk(r.Terminate), signed("jobs.terminate", "items[]")),
		route("jobs/extend", bulkBody, bulk(r.Extend), signed("jobs.extend", each)),
		route("jobs/suspend", bulkBody, bulk(r.Suspend), signed("jobs.suspend", each)),
		route("jobs/unsuspend", bulkBody, bulk(r.Resume), signed("jobs.unsuspend", each)),
		route("jobs/interactiveSession", bulkBody, sessions(r.Open), signed("jobs.openInteractiveSession", each)),
		route("jobs/openTerminalInFolder", oneBody, sessions(r.OpenFolders), OpenTerminalIntent),
		route("jobs/requestDynamicParameters", oneBody, r.serveParameters, unsigned([]string{"jobs.requestDynamicParameters"}, "")),
		// Access lists and labels are Core's; nothing here depends on them.
		route("jobs/updateAcl", bulkBody, bulk(func(context.Context, []providerapi.Empty) error { return nil }),
			unsigned([]string{"jobs.updateAcl"}, "items[].resource")),
		route("jobs/onUpdatedLabels", bulkBody, serveLabels, unsigned([]string{"jobs.onUpdatedLabels", "jobs.updateLabels"}, "items[]")),
		route("jobs/attachResource", oneBody, refuse("Resources cannot be attached to jobs of this provider"), unsigned([]string{"jobs.attachResource"}, "job")),
		route("jobs/detachResource", oneBody, refuse("Resources cannot be detached from jobs of this provider"), unsigned([]string{"jobs.detachResource"}, "job")),
	}
}

func (r *Runner) serveCreate(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.BulkRequest[providerapi.Job]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	switch len(req.Items) {
	case 0:
		return c.Write(w, providerapi.BulkResponse[providerapi.FindByID]{})
	case 1:
	default:
		return failure.New(failure.Invalid, "Jobs are submitted one at a time")
	}
	arrived := c.Claims().Arrival
	if now := r.o.Now(); arrived.IsZero() || arrived.After(now) {
		arrived = now
	}
	id, err := r.Create(c.Context(), arrived, &req.Items[0])
	if err != nil {
		return err
	}
	return c.Write(w, providerapi.BulkResponse[providerapi.FindByID]{Responses: []providerapi.FindByID{{ID: id}}})
}

// bulk makes the handler of a call that does something with each of many items and answers with one empty object for each.
func bulk[Item any](do func(context.Context, []Item) error) func(http.ResponseWriter, *fileserver.Call) error {
	return func(w http.ResponseWriter, c *fileserver.Call) error {
		var req providerapi.BulkRequest[Item]
		if err := c.Decode(w, &req); err != nil {
			return err
		}
		if err := do(c.Context(), req.Items); err != nil {
			return err
		}
		return c.Write(w, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(req.Items))})
	}
}

// sessions makes the handler of a call that opens a session for each item.
func sessions[Item any](open func(context.Context, []Item) ([]providerapi.OpenSession, error)) func(http.ResponseWriter, *fileserver.Call) error {
	return func(w http.ResponseWriter, c *fileserver.Call) error {
		var req providerapi.BulkRequest[Item]
		if err := c.Decode(w, &req); err != nil {
			return err
		}
		list, err := open(c.Context(), req.Items)
		if err != nil {
			return err
		}
		return c.Write(w, providerapi.BulkResponse[providerapi.OpenSession]{Responses: list})
	}
}

func (r *Runner) serveParameters(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.DynamicParametersRequest
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	list, err := r.Parameters(c.Context(), &req)
	if err != nil {
		return err
	}
	return c.Write(w, providerapi.DynamicParametersResponse{Parameters: list})
}

func serveLabels(w http.ResponseWriter, c *fileserver.Call) error {
	var req providerapi.BulkRequest[providerapi.FindByID]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	return c.Write(w, providerapi.Empty{})
}

// refuse makes the handler of a call that Slurm has no means for. It is the caller's mistake, not ours: 400.
func refuse(why string) func(http.ResponseWriter, *fileserver.Call) error {
	return func(w http.ResponseWriter, c *fileserver.Call) error {
		var req providerapi.JobResource
		if err := c.Decode(w, &req); err != nil {
			return err
		}
		return failure.New(failure.Invalid, "%s", why)
	}
}
