package coreapi

import (
	"encoding/json"
	"errors"
	"os"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

func jobUpdate(id string, state providerapi.JobState, status, folder string) providerapi.JobUpdateItem {
	u := providerapi.JobUpdateItem{ID: id}
	if state != "" {
		u.Update.State = &state
	}
	if status != "" {
		u.Update.Status = &status
	}
	if folder != "" {
		u.Update.OutputFolder = &folder
	}
	return u
}

func withoutTimestamps(t *testing.T, rec exchangeRecord) exchangeRecord {
	t.Helper()
	var raw map[string][]map[string]any
	if err := json.Unmarshal([]byte(rec.request), &raw); err != nil {
		t.Fatal(err)
	}
	for _, item := range raw["items"] {
		if u, ok := item["update"].(map[string]any); ok {
			u["timestamp"] = 0
		}
	}
	b, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	rec.request = string(b)
	return rec
}

func TestReplayJobs(t *testing.T) {
	t.Parallel()
	const file = "09-jobs.md"
	yes := true
	running := jobUpdate("11", providerapi.JobRunning, "The job is now running", "")
	running.Update.ExpectedDifferentState = &yes
	for section, items := range map[int][]providerapi.JobUpdateItem{
		2:  {running},
		3:  {running},
		4:  {jobUpdate("11", "", "", "/4/Jobs/first"), jobUpdate("11", "", "Half way", "")},
		27: {jobUpdate("11", providerapi.JobSuccess, "Finished", "")},
	} {
		if err := replay(t, withoutTimestamps(t, recording(t, file, section))).UpdateJobs(t.Context(), items); err != nil {
			t.Errorf("section %d: %v", section, err)
		}
	}
	err := replay(t, withoutTimestamps(t, recording(t, file, 5))).UpdateJobs(t.Context(), []providerapi.JobUpdateItem{jobUpdate("999999", "", "x", "")})
	if id, ok := UnknownJob(err); !ok || id != "999999" || Status(err) != 404 {
		t.Errorf("unknown job: %q %v", id, err)
	}
	j, err := replay(t, recording(t, file, 6)).RetrieveJob(t.Context(), "11")
	if err != nil || j.Owner.CreatedBy != "recuser" || j.Specification.Product.ID != "rec-cpu-1" || j.Status.State != providerapi.JobRunning {
		t.Errorf("retrieve: %+v %v", j, err)
	}
	rec := recording(t, file, 6)
	rec.target = "/api/jobs/control/retrieve?id=12"
	if _, err := replay(t, rec).RetrieveJob(t.Context(), "12"); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("another job than asked for: %v", err)
	}

	user := ident.UCloudUser("recuser")
	r := providerapi.RegisterJob{ProviderGeneratedID: "slurm-777", CreatedBy: &user}
	r.Spec.Product = providerapi.ProductReference{ID: "rec-cpu-1", Category: "rec-cpu", Provider: "recprov"}
	r.Spec.Application = providerapi.ApplicationReference{Name: "lab-batch", Version: "1"}
	r.Spec.Name, r.Spec.Replicas = "found", 1
	r.Spec.TimeAllocation = &providerapi.SimpleDuration{Hours: 1}
	if id, err := replayFor(t, recording(t, file, 36), "recprov").RegisterJob(t.Context(), r); err != nil || id != "15" {
		t.Errorf("register: %q %v", id, err)
	}
	if _, err := replayFor(t, recording(t, file, 37), "recprov").RegisterJob(t.Context(), r); Status(err) != 409 {
		t.Errorf("register again: %v", err)
	}
	if j, ok, err := replayFor(t, recording(t, file, 39), "recprov").FindJob(t.Context(), "slurm-777"); err != nil || !ok || j.ID != "15" {
		t.Errorf("find: %+v %v %v", j.ID, ok, err)
	}
}

func TestGoldenJobUpdates(t *testing.T) {
	t.Parallel()
	for file, do := range map[string]func(*Client) error{
		"jobs.control.update": func(c *Client) error {
			a, b := jobUpdate("90817", providerapi.JobRunning, "Your job is now running", ""), jobUpdate("90816", providerapi.JobSuccess, "Your job has successfully completed", "/5123/UCloud Jobs/90816")
			return c.UpdateJobs(t.Context(), []providerapi.JobUpdateItem{a, b})
		},
	} {
		raw, err := os.ReadFile("../providerapi/testdata/examples/core/" + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var ex struct {
			Method, Path      string
			Request, Response json.RawMessage
			Status            int
		}
		if err := json.Unmarshal(raw, &ex); err != nil {
			t.Fatal(err)
		}
		rec := exchangeRecord{method: ex.Method, target: ex.Path, request: string(ex.Request), status: ex.Status, response: string(ex.Response)}
		if err := do(replayFor(t, withoutTimestamps(t, rec), "hpc-example")); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsNeverSaidAboutJobs(t *testing.T) {
	t.Parallel()
	c := testClient(t, "http://127.0.0.1:1", staticToken("access.token.sig"))
	c.provider = "hpc"
	user, nobody := ident.UCloudUser("a"), ident.UCloudUser("")
	good := providerapi.RegisterJob{ProviderGeneratedID: "a/1/2", CreatedBy: &user}
	good.Spec.Product.Provider = "hpc"
	for name, spoil := range map[string]func(r *providerapi.RegisterJob){
		"other provider": func(r *providerapi.RegisterJob) { r.Spec.Product.Provider = "x" },
		"no id":          func(r *providerapi.RegisterJob) { r.ProviderGeneratedID = "" },
		"comma":          func(r *providerapi.RegisterJob) { r.ProviderGeneratedID = "a,b" },
		"no user":        func(r *providerapi.RegisterJob) { r.CreatedBy = nil },
		"empty user":     func(r *providerapi.RegisterJob) { r.CreatedBy = &nobody },
	} {
		r := good
		spoil(&r)
		if _, err := c.RegisterJob(t.Context(), r); !errors.Is(err, ErrNotSent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, MaxJobUpdates + 1} {
		if err := c.UpdateJobs(t.Context(), make([]providerapi.JobUpdateItem, n)); !errors.Is(err, ErrNotSent) {
			t.Errorf("%d updates: %v", n, err)
		}
	}
	for _, err := range []error{nil, errors.New("x"), &StatusError{Status: 500, Why: "permission denied (1)"}, &StatusError{Status: 404, Why: "gone"}} {
		if id, ok := UnknownJob(err); ok {
			t.Errorf("%v names %q", err, id)
		}
	}
}
