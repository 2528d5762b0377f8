// Package attack reads what the tests say about the attacks they prove harmless, writes the table of docs/security.md
// from it, and checks that each of these tests fails when its control is removed.
//
// A test says so in directives right above its function, behind its doc comment:
//
//	//attack:actor local user
//	//attack:does Connects to the port of another user's instance and sends a request as Core would.
//	//attack:control Instances serve only requests with a hop token made for their route.
//	//attack:remove internal/fileserver/guard.go: if len(tokens) != 1 { => if false {
//	//attack:run Subtest/name
//
// Each //attack:actor begins one attack; one function may have several. The text to be removed stands exactly once in its
// file; \n and \t are a line break and a tab, \\ is a backslash. There may be several removals, and //attack:run is for
// attacks that one subtest is about. With the removals applied everything still compiles.
//
// Load checks all of that without running anything, and the tests of this package call it, so that a control that was
// renamed cannot lose its attack unseen. The program in the subpackage controls (make controls) is the proof: it applies
// each removal with the overlay of the go command, touching no file, and demands that the test fails.
package attack

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// actors are the attackers of docs/security.md, in its order.
var actors = []string{
	"internet", "local user", "compromised core", "compromised instance", "malicious identity", "malicious script", "malicious job",
}

// headings are the actors' names for people.
var headings = map[string]string{
	"internet":             "Somebody on the internet",
	"local user":           "A local user of the login node",
	"compromised core":     "UCloud/Core, taken over",
	"compromised instance": "A user's instance, taken over (or its user)",
	"malicious identity":   "An identity system that answers with malice",
	"malicious script":     "An extension script that answers with malice",
	"malicious job":        "A job that works against the provider or its neighbours",
}

// Attack is one attack with the control that stops it and the test that proves it.
type Attack struct {
	Actor   string
	Does    string // what the attacker does, a sentence
	Control string // what stops it, a sentence
	Removes []Removal
	Run     string // subtest, or empty

	Package string // directory of the test, from the root of the repository
	Test    string // name of the function
	File    string // file of the test, from the root
	Line    int    // of the //attack:actor
	Tags    []string
	Number  int // from 1 among the attacks of the same function
}

// ID names the attack: directory and test, and a number where the test has more than one.
func (a Attack) ID() string {
	id := strings.TrimPrefix(a.Package, "internal/") + "." + a.Test
	if a.Number > 1 {
		id += fmt.Sprintf("#%d", a.Number)
	}
	return id
}

// Removal takes a control out of a file: Old, which stands there exactly once, becomes New.
type Removal struct {
	File string // from the root of the repository
	Old  string
	New  string
}

// parseRemoval reads "FILE: OLD => NEW".
func parseRemoval(text string) (Removal, error) {
	file, rest, ok := strings.Cut(text, ": ")
	old, replacement, arrow := strings.Cut(rest+" ", " => ")
	if !ok || !arrow || strings.Contains(file, " ") || strings.TrimSpace(old) == "" {
		return Removal{}, fmt.Errorf("is not FILE: OLD => NEW: %q", text)
	}
	return Removal{File: file, Old: unescape(old), New: unescape(strings.TrimSuffix(replacement, " "))}, nil
}

func unescape(text string) string {
	return strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t").Replace(text)
}

// sentence checks that a text is one for people.
func sentence(text string) error {
	switch {
	case text == "":
		return fmt.Errorf("is empty")
	case !strings.HasSuffix(text, "."):
		return fmt.Errorf("does not end with a dot: %q", text)
	case strings.ToUpper(text[:1]) != text[:1]:
		return fmt.Errorf("does not begin with a capital letter: %q", text)
	}
	return nil
}

// sortForPeople orders attacks by actor, then by package and place.
func sortForPeople(attacks []Attack) {
	slices.SortStableFunc(attacks, func(a, b Attack) int {
		return cmp.Or(
			cmp.Compare(slices.Index(actors, a.Actor), slices.Index(actors, b.Actor)),
			cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
		)
	})
}
