package roleserver

import (
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
)

// TestIntentsOfTheConfiguration: what the operator writes is what instances are told.
func TestIntentsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	s := &server{}
	s.config.Store(loadText(t, base+unmanaged))
	if got := s.intentSettings("Ada#1815"); !intent.NewPolicy(got.Mode, got.Calls, got.Exempt).Off() || intentPolicy(s.config.Load()).Wanted("Ada#1815") {
		t.Errorf("by default: %+v", got)
	}
	const policy = `  core:
    clockSkew: 0
    signedIntents:
      mode: log
      maxAge: 45s
      users: { "Ada#1815": require, "Grace#1906": "off" }
      calls: { jobs.create: require, files.browse: "off" }
      exempt: [files.copy]
`
	s.config.Store(loadText(t, strings.TrimSuffix(base, "\n")+"\n"+policy+unmanaged))
	for _, tc := range []struct {
		user       ident.UCloudUser
		call, want string
	}{
		{"Ada#1815", "files.move", intent.ModeRequire},
		{"Ada#1815", "files.browse", intent.ModeRequire},
		{"Ada#1815", "files.copy", intent.ModeOff},
		{"Grace#1906", "files.move", intent.ModeOff},
		{"Grace#1906", "jobs.create", intent.ModeRequire},
		{"Mary#1", "files.move", intent.ModeLog},
		{"Mary#1", "files.browse", intent.ModeOff},
		{"Mary#1", "jobs.create", intent.ModeRequire},
	} {
		got := s.intentSettings(tc.user)
		if mode := intent.NewPolicy(got.Mode, got.Calls, got.Exempt).Mode(intent.Rule{Calls: []string{tc.call}}); mode != tc.want {
			t.Errorf("%s, %s: %s, want %s", tc.user, tc.call, mode, tc.want)
		}
		// A leeway of nothing must not become the usual one, which 0 means to instances.
		if got.MaxAgeMs != (45*time.Second).Milliseconds() || got.SkewMs != 1 {
			t.Errorf("limits: %+v", got)
		}
	}
}
