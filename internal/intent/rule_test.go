package intent

import "testing"

func TestRuleMustSaySomething(t *testing.T) {
	for _, tc := range []struct {
		rule Rule
		ok   bool
	}{
		{Rule{}, false},
		{Rule{Calls: []string{"files.browse"}}, true},
		{Rule{Exempt: "has a token of its own"}, true},
		{Rule{Calls: []string{"files.browse"}, Exempt: "why"}, false},
		{Rule{Calls: []string{""}}, false},
	} {
		if err := tc.rule.Check(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.rule, err)
		}
	}
}
