package jobs

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

var errTest = errors.New("test")

func TestGrant(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	g, err := w.own("11")
	if err != nil {
		t.Fatal(err)
	}
	if g.Known || g.Engine != "slurm" || g.Account != "u_Ada" || g.Partition != "normal" || g.Comment != "ucloud:hpc:11" ||
		g.Machine.CPU != 4 || g.Folder != "ucloud-jobs" || g.Attempt != 1 || !g.Until.Equal(day.Add(leave)) || g.MaxNodes != 8 {
		t.Errorf("%+v", g)
	}
	if _, err := w.own("11"); !failure.Is(err, failure.Conflict) {
		t.Errorf("a second leave beside the first: %v", err)
	}
}

//attack:actor compromised instance
//attack:does Submits a job in the name of another user.
//attack:control The user of a job must be the one of the account that asks.
//attack:remove internal/jobs/begin.go: case user == "" || w.job.Owner.CreatedBy != user || !w.owner.Valid(): => case user == "" || !w.owner.Valid():
func TestWhoMayBegin(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	mine, ours := ident.Owner{User: ada}, ident.Owner{Project: climate}
	change := func(owner ident.Owner, f func(j *providerapi.Job)) ipcapi.JobBeginning {
		j := document("11", ada, owner, product)
		f(&j)
		raw, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		return ipcapi.JobBeginning{Job: raw}
	}
	for name, tc := range map[string]struct {
		user ident.UCloudUser
		uid  ident.UID
		b    ipcapi.JobBeginning
		kind failure.Kind
	}{
		"somebody else's":    {bob, bobID, change(mine, func(*providerapi.Job) {}), failure.Forbidden},
		"no member":          {eve, eveID, w.beginning("11", eve, ours), failure.NotFound},
		"unknown project":    {ada, adaID, w.beginning("11", ada, ident.Owner{Project: "x"}), failure.NotFound},
		"no such machine":    {ada, adaID, change(mine, func(j *providerapi.Job) { j.Specification.Product.ID = "cpu-5" }), failure.Invalid},
		"another provider":   {ada, adaID, change(mine, func(j *providerapi.Job) { j.Specification.Product.Provider = "x" }), failure.Invalid},
		"no nodes":           {ada, adaID, change(mine, func(j *providerapi.Job) { j.Specification.Replicas = 0 }), failure.Invalid},
		"too many nodes":     {ada, adaID, change(mine, func(j *providerapi.Job) { j.Specification.Replicas = 9 }), failure.Invalid},
		"too long":           {ada, adaID, change(mine, func(j *providerapi.Job) { j.Specification.TimeAllocation.Hours = 11 }), failure.Invalid},
		"an id that is none": {ada, adaID, change(mine, func(j *providerapi.Job) { j.ID = "../x" }), failure.Invalid},
		"an id with colon":   {ada, adaID, change(mine, func(j *providerapi.Job) { j.ID = "1:2" }), failure.Invalid},
		"no JSON":            {ada, adaID, ipcapi.JobBeginning{Job: []byte("{")}, failure.Invalid},
		"too large":          {ada, adaID, ipcapi.JobBeginning{Job: make([]byte, ipcapi.MaxJob+1)}, failure.TooLarge},
		"nobody":             {"", adaID, w.beginning("11", "", ident.Owner{}), failure.Forbidden},
	} {
		if _, err := w.Begin(t.Context(), tc.user, tc.uid, tc.b); !failure.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.acc.err = failure.New(failure.Invalid, "Choose an account")
	if _, err := w.own("12"); failure.Why(err) != "Choose an account" {
		t.Errorf("without an account: %v", err)
	}
	if _, err := w.Begin(t.Context(), ada, adaID, w.beginning("13", ada, ours)); err == nil {
		t.Error("without an account")
	}
	w.acc.err = nil
	if _, err := w.Begin(t.Context(), ada, adaID, w.beginning("13", ada, ours)); err != nil {
		t.Errorf("a member: %v", err)
	}
}

// New jobs are refused when the wallet is locked, and when Core has never spoken of one; free machines have none. What was
// submitted before is told all the same.
//
//attack:actor local user
//attack:does Submits jobs when the allocation is used up.
//attack:control The wallet is looked at when a job begins.
//attack:remove internal/jobs/begin.go: if err != nil || wallet.Locked { => if err != nil && !wallet.Locked {
func TestLockedWallet(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	slurmID := w.submit("11")
	w.update(func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{User: ada}, Category: category, Locked: true, LastUpdate: day.Add(time.Second)})
		return err
	})
	if _, err := w.own("12"); !failure.Is(err, failure.PaymentRequired) {
		t.Errorf("locked: %v", err)
	}
	g, err := w.own("11")
	if err != nil || !g.Known || !strings.HasPrefix(g.ProviderGeneratedID, "u_Ada/"+slurmID+"/") {
		t.Errorf("%+v %v", g, err)
	}
	old := w.set.Machine
	w.set.Machine = func(ref providerapi.ProductReference) (Machine, bool) {
		m, ok := old(ref)
		m.Category, m.FreeToUse = "free", true
		return m, ok
	}
	if _, err := w.own("13"); err != nil {
		t.Errorf("free: %v", err)
	}
	w.set.Machine = func(ref providerapi.ProductReference) (Machine, bool) {
		m, ok := old(ref)
		m.Category = "other"
		return m, ok
	}
	if _, err := w.own("14"); !failure.Is(err, failure.PaymentRequired) {
		t.Errorf("never heard of: %v", err)
	}
}

//attack:actor local user
//attack:does Reads tokens of applications in a copy of the database.
//attack:control Parameters that are secrets are not stored.
//attack:remove internal/jobs/begin.go: return json.Unmarshal(value, &kind) != nil || kind.Type == "api_server" => return json.Unmarshal(value, &kind) != nil
func TestSecretsAreNotKept(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	var doc map[string]any
	raw, _ := json.Marshal(document("11", ada, ident.Owner{User: ada}, product))
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	spec := doc["specification"].(map[string]any) //nolint:forcetypeassert // it is
	spec["parameters"] = map[string]any{
		"a": map[string]any{"type": "api_server", "token": "geheim"}, "b": map[string]any{"type": "text", "value": "kept"},
		"c": []string{"geheim"},
	}
	spec["resources"] = []any{map[string]any{"type": "api_server", "token": "geheim"}, map[string]any{"type": "file", "path": "/kept"}}
	spec["name"] = "a\x1b[31m\nb"
	doc["updates"] = []any{map[string]any{"status": "geheim"}}
	raw, _ = json.Marshal(doc)
	if _, err := w.Begin(t.Context(), ada, adaID, ipcapi.JobBeginning{Job: raw}); err != nil {
		// A parameter that is no value is refused by the decoder; without it, the rest is kept.
		delete(spec["parameters"].(map[string]any), "c") //nolint:forcetypeassert // it is
		raw, _ = json.Marshal(doc)
		if _, err := w.Begin(t.Context(), ada, adaID, ipcapi.JobBeginning{Job: raw}); err != nil {
			t.Fatal(err)
		}
	}
	j := w.row("11", adaID)
	if strings.Contains(j.Document, "geheim") || strings.Count(j.Document, "kept") != 2 || strings.ContainsAny(j.Name, "\x1b\n") {
		t.Errorf("%q %s", j.Name, j.Document)
	}
}

//attack:actor compromised core
//attack:does Submits jobs without end.
//attack:control Submissions that have not ended, and jobs that Core has not confirmed, are bounded for each account.
//attack:remove internal/jobs/begin.go: if begun >= maxBegun || unconfirmed >= maxUnconfirmed { => if begun+unconfirmed < 0 {
func TestTooManySubmissions(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	for i := range maxBegun {
		if _, err := w.own("b" + strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.own("more"); !failure.Is(err, failure.TooMany) {
		t.Errorf("%v", err)
	}
}

// A refused submission leaves nothing, and may be made again.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	g, err := w.own("11")
	if err != nil {
		t.Fatal(err)
	}
	refusal := ipcapi.JobRefusal{Job: "11", Attempt: g.Attempt, Message: "no such QoS"}
	if err := w.Refused(t.Context(), bob, bobID, refusal); !failure.Is(err, failure.NotFound) {
		t.Errorf("by somebody else: %v", err)
	}
	for range 2 {
		if err := w.Refused(t.Context(), ada, adaID, refusal); err != nil {
			t.Error(err)
		}
	}
	if r := w.row("11", adaID); r.Submission != store.JobRefused || r.Message != "no such QoS" {
		t.Errorf("%+v", r)
	}
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "11", Attempt: 1, EngineID: "5"}); !failure.Is(err, failure.Conflict) {
		t.Errorf("submitted after all: %v", err)
	}
	g, err = w.own("11")
	if err != nil || g.Attempt != 2 {
		t.Errorf("%+v %v", g, err)
	}
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "11", Attempt: 1, EngineID: "5"}); !failure.Is(err, failure.Conflict) {
		t.Errorf("a report of an earlier attempt: %v", err)
	}
	if err := w.Refused(t.Context(), ada, adaID, refusal); !failure.Is(err, failure.Conflict) {
		t.Errorf("a refusal of an earlier attempt: %v", err)
	}
}

func TestSubmittedTwice(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	id := w.submit("11")
	first := w.row("11", adaID)
	again := ipcapi.JobSubmission{Job: "11", Attempt: 1, EngineID: id, Folder: "/elsewhere"}
	got, err := w.Submitted(t.Context(), ada, adaID, again)
	if err != nil || got.ProviderGeneratedID != first.PGID || w.row("11", adaID).Folder != first.Folder {
		t.Errorf("%+v %v", got, err)
	}
	again.EngineID = "999"
	if _, err := w.Submitted(t.Context(), ada, adaID, again); !failure.Is(err, failure.Conflict) {
		t.Errorf("under another id: %v", err)
	}
	g, err := w.own("12")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "12", Attempt: g.Attempt, EngineID: id}); !failure.Is(err, failure.Conflict) {
		t.Errorf("the id of another job: %v", err)
	}
	for _, bad := range []string{"", "0x1", "-1", "01", "1_2", "a", "1;2", strings.Repeat("9", 30)} {
		if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{Job: "12", Attempt: g.Attempt, EngineID: bad}); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Targets and the way to log in are told in the form that the web interface knows.
func TestFirstUpdates(t *testing.T) {
	t.Parallel()
	w := sqlite(t)
	w.set.SSHLine = func(name string) string { return "ssh " + name + "@login" }
	g, err := w.own("11")
	if err != nil {
		t.Fatal(err)
	}
	id := w.slurm.sbatch(adaName, g.Account, g.Comment)
	if _, err := w.Submitted(t.Context(), ada, adaID, ipcapi.JobSubmission{
		Job: "11", Attempt: 1, EngineID: id, Folder: "/f", Targets: []ipcapi.JobTarget{{Rank: 0, Type: "WEB", Target: "Dashboard", Port: 8787}},
	}); err != nil {
		t.Fatal(err)
	}
	w.pass(3 * time.Second)
	w.tellCore()
	w.expect("11", `["Submitted to Slurm as job `+id+`" `+
		`"Target: {\"rank\":0,\"type\":\"WEB\",\"target\":\"Dashboard\",\"port\":8787,\"defaultName\":null}" "SSH: Connected! Available at: ssh ada@login"]`)
}
