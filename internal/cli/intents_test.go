package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
)

// TestIntentsReport: what an operator reads before switching to require.
func TestIntentsReport(t *testing.T) {
	t.Parallel()
	w := testWorld(t)
	if code, out, _ := w.run(t, nil, "intents", "report"); code != 0 || !strings.Contains(out, "No call was looked at") {
		t.Errorf("of nothing: %d\n%s", code, out)
	}
	at := time.Date(2031, 2, 3, 9, 0, 0, 0, time.UTC)
	w.mu.Lock()
	w.intents = ipcapi.IntentSummary{
		Mode: "log", Since: time.Now().Add(-3 * time.Hour),
		Counts: []ipcapi.IntentCount{
			{Call: "jobs.create", User: "Alice#1234", Verdict: "missing", Mode: "log", Count: 7, LastAt: &at, Refused: true},
			{Call: "files.move", User: "Bob\x1b[31m#1", Verdict: "signature", Mode: "log", Form: "1", Count: 2, LastAt: &at, Refused: true},
			{Call: "files.copy", Verdict: "payload", Mode: "log", Form: "2", Count: 1, LastAt: &at, Refused: true},
			{Call: "files.browse", User: "Alice#1234", Verdict: "ok", Mode: "log", Form: "1", Count: 90, LastAt: &at},
			{Call: "files.browse", User: "Alice#1234", Verdict: "unavailable", Mode: "log", Count: 3, LastAt: &at},
		},
		Keyless: []ident.UCloudUser{"Carol#3", "Dave#4"},
	}
	w.mu.Unlock()
	code, out, errs := w.run(t, nil, "intents", "report")
	for _, want := range []string{
		"Policy: log.", "require refuses 10 of 103 calls of the last 3 h 0 min", "3 could not be checked", "2 connected users without a signing key",
		"Carol#3, Dave#4", "jobs.create\tAlice#1234\tmissing\t7\t", "files.move\tBob?[31m#1\tsignature\t2\t", "files.copy\t(others)\tpayload\t1\t",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s%s", want, out, errs)
		}
	}
	if code != 0 || strings.Contains(out, "\tok\t") {
		t.Errorf("%d\n%s", code, out)
	}
	if _, out, _ := w.run(t, nil, "intents", "report", "--all", "--call", "files.browse", "--sort", "count:desc"); !strings.Contains(out, "require refuses 0 of 93 calls") ||
		!strings.Contains(out, "\tok\t90\t") || strings.Contains(out, "jobs.create") {
		t.Errorf("with a filter:\n%s", out)
	}
	_, out, _ = w.run(t, nil, "intents", "report", "--json", "--ucloud-name", "Alice#1234")
	var doc itemEnvelope[intentsReport]
	if err := json.Unmarshal([]byte(out), &doc); err != nil || doc.Schema != "ucloud.cli/intents.report/1" || doc.Item.Refused != 7 || doc.Item.Total != 100 ||
		len(doc.Item.Counts) != 2 || len(doc.Item.Keyless) != 2 {
		t.Errorf("%v: %s", err, out)
	}
	if code, _, errs := w.run(t, nil, "intents", "report", "--sort", "nothing"); code != ExitUsage {
		t.Errorf("a wrong flag: %d %s", code, errs)
	}
}
