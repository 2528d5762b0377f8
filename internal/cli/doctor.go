package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"ucloud-im/internal/config"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/sandbox"
)

// Severities of a check (contract 41 section 6).
const (
	sevOK      = "ok"
	sevInfo    = "info"
	sevWarning = "warning"
	sevError   = "error"
	sevSkipped = "skipped"
)

// checkResult is the outcome of one check.
type checkResult struct {
	ID       string   `json:"id"`
	Severity string   `json:"severity"`
	Summary  string   `json:"summary"`
	Details  []string `json:"details,omitempty"`
	Remedy   string   `json:"remedy,omitempty"`
}

type doctorReport struct {
	Health ipcapi.Health `json:"health"`
	Checks []checkResult `json:"checks"`
}

// examination is what the checks share.
type examination struct {
	a       *app
	names   siteNames
	account string
	user    string // --user
	config  *config.Config
	dir     *localuser.Directory
}

// check is one check or a group of them; id is its name or the common beginning of theirs.
type check struct {
	id  string
	run func(ctx context.Context, x *examination) []checkResult
}

func checks() []check {
	return []check{
		{"config", checkConfig},
		{"system.account", checkAccount},
		{"system.group", checkGroup},
		{"system.sudo", checkSudo},
		{"system.directories", checkDirectories},
		{"system.sandbox", checkSandbox},
		{"identity", checkIdentity},
		{"service", checkService},
	}
}

func (a *app) doctorCommand() *cobra.Command {
	var only, skip []string
	var user, account string
	c := a.verb("doctor", "check the environment of the service", 0, 0, func(ctx context.Context, _ *cobra.Command, _ []string) error {
		for _, id := range append(slices.Clone(only), skip...) {
			if !slices.ContainsFunc(checks(), func(c check) bool { return selects(id, c.id) || selects(c.id, id) }) {
				return usagef("there is no check %q", clean(id))
			}
		}
		x := &examination{a: a, names: a.siteNames(), account: account, user: user, dir: localuser.NewDirectory(localuser.Options{})}
		rep := doctorReport{Health: ipcapi.HealthOK, Checks: []checkResult{}}
		for _, c := range checks() {
			if len(only) > 0 && !slices.ContainsFunc(only, func(id string) bool { return selects(id, c.id) || selects(c.id, id) }) {
				continue
			}
			if slices.ContainsFunc(skip, func(id string) bool { return selects(id, c.id) }) {
				continue
			}
			for _, r := range c.run(ctx, x) {
				switch r.Severity {
				case sevWarning:
					rep.Health = rep.Health.Worse(ipcapi.HealthWarning)
				case sevError:
					rep.Health = rep.Health.Worse(ipcapi.HealthError)
				}
				rep.Checks = append(rep.Checks, r)
			}
		}
		if err := item(a, "doctor", "run", string(rep.Health), rep, func() error { return a.printDoctor(rep) }); err != nil {
			return err
		}
		return healthExit(rep.Health)
	})
	f := c.Flags()
	f.StringSliceVar(&only, "check", nil, "only these checks")
	f.StringSliceVar(&skip, "skip", nil, "without these checks")
	f.StringVar(&user, "user", "", "also check this local user")
	f.StringVar(&account, "service-account", defaultServiceAccount, "account the service runs as")
	return c
}

// selects tells whether a name selects a check: it is its id, or a part of it up to a dot.
func selects(name, id string) bool { return name == id || strings.HasPrefix(id, name+".") }

func (a *app) printDoctor(rep doctorReport) error {
	var lines [][]string
	for _, r := range rep.Checks {
		sev := r.Severity
		switch sev {
		case sevOK, sevWarning, sevError:
			sev = a.healthText(ipcapi.Health(sev))
		}
		lines = append(lines, []string{sev, clean(r.ID), clean(r.Summary)})
		for _, d := range r.Details {
			lines = append(lines, []string{"", "", clean(d)})
		}
		if r.Remedy != "" {
			lines = append(lines, []string{"", "", "remedy: " + clean(r.Remedy)})
		}
	}
	return a.align(lines)
}

func one(r checkResult) []checkResult { return []checkResult{r} }

func checkConfig(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "config", Severity: sevOK, Summary: "the configuration in " + x.a.dir() + " is accepted"}
	if !x.a.readable() {
		r.Severity, r.Summary, r.Remedy = sevSkipped, "the configuration cannot be read by you", "run doctor as root or as the service account"
		return one(r)
	}
	o, err := x.a.checkOptions(ctx, x.account)
	if err != nil {
		r.Severity, r.Summary = sevError, failure.Why(err)
		return one(r)
	}
	o.Environment = true
	c, problems := config.Load(x.a.dir(), o)
	if c != nil {
		x.config, problems = c, c.Warnings
	}
	for _, p := range problems {
		r.Details = append(r.Details, p.String())
		if p.Remedy != "" {
			r.Details = append(r.Details, "  "+p.Remedy)
		}
	}
	switch {
	case problems.HasErrors():
		r.Severity, r.Summary, r.Remedy = sevError, "the configuration is not accepted", "ucloud config check"
	case len(problems) > 0:
		r.Severity = sevWarning
	}
	return one(r)
}

func checkAccount(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "system.account", Severity: sevOK}
	acc, err := x.dir.ByName(ctx, x.account)
	switch {
	case err != nil:
		r.Severity, r.Summary = sevError, fmt.Sprintf("the service account %s: %s", x.account, failure.Why(err))
		r.Remedy = "useradd --system --home-dir /var/lib/ucloud --shell /usr/sbin/nologin " + x.account
	case acc.UID == 0:
		r.Severity, r.Summary = sevError, "the service account is root"
	default:
		r.Summary = fmt.Sprintf("the service account %s has uid %d", acc.Name, acc.UID)
	}
	return one(r)
}

func checkGroup(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "system.group", Severity: sevOK}
	g, err := x.dir.Group(ctx, x.names.group)
	if err != nil {
		r.Severity, r.Summary = sevError, fmt.Sprintf("the group %s: %s", x.names.group, failure.Why(err))
		r.Remedy = "groupadd " + x.names.group
		return one(r)
	}
	r.Summary = fmt.Sprintf("the group %s has gid %d and lists %s", g.Name, g.GID, plural(len(g.Members), "member"))
	if slices.Contains(g.Members, x.account) {
		r.Severity, r.Summary = sevError, fmt.Sprintf("the service account is a member of %s", g.Name)
		r.Remedy = fmt.Sprintf("gpasswd -d %s %s", x.account, g.Name)
	}
	return one(r)
}

// checkSudo asks sudo whether the service may start the program as a member of the group. Root may ask for others.
func checkSudo(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "system.sudo", Severity: sevSkipped}
	acc, err := x.dir.ByName(ctx, x.account)
	if err != nil || (hostUID() != 0 && !isServiceAccount(acc)) {
		r.Summary, r.Remedy = "only root and the service account can ask sudo", "run doctor as one of them"
		return one(r)
	}
	member := x.user
	if g, err := x.dir.Group(ctx, x.names.group); err == nil && member == "" {
		for _, m := range g.Members {
			if m != "root" && m != x.account {
				member = m
				break
			}
		}
	}
	if member == "" {
		r.Severity, r.Summary = sevWarning, fmt.Sprintf("the group %s lists nobody for whom sudo could be asked", x.names.group)
		r.Remedy = "ucloud doctor --user NAME"
		return one(r)
	}
	args := []string{"-n", "-l", "-u", member, "--", x.names.program}
	if hostUID() == 0 {
		args = append([]string{"-U", acc.Name}, args...)
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/sudo", args...)
	cmd.Env, cmd.Dir = []string{"LC_ALL=C"}, "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Severity, r.Summary = sevError, fmt.Sprintf("sudo does not let %s start %s as %s", acc.Name, x.names.program, member)
		r.Details, r.Remedy = []string{string(bytes.TrimSpace(out))}, "ucloud setup sudoers --apply"
		return one(r)
	}
	r.Severity, r.Summary = sevOK, fmt.Sprintf("sudo lets %s start %s as %s", acc.Name, x.names.program, member)
	return one(r)
}

func checkDirectories(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "system.directories", Severity: sevOK, Summary: "the directories of the service are as they should be"}
	acc, err := x.dir.ByName(ctx, x.account)
	if err != nil {
		r.Severity, r.Summary = sevSkipped, "there is no service account to compare with"
		return one(r)
	}
	for _, d := range x.names.directories() {
		st, err := os.Lstat(d.path)
		switch {
		case errors.Is(err, fs.ErrPermission):
			continue
		case err != nil:
			r.Details = append(r.Details, d.path+" is missing")
			continue
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		switch {
		case !st.IsDir():
			r.Details = append(r.Details, d.path+" is not a directory")
		case ok && ident.UID(sys.Uid) != acc.UID && sys.Uid != 0:
			r.Details = append(r.Details, fmt.Sprintf("%s belongs to uid %d", d.path, sys.Uid))
		case st.Mode().Perm()&^d.mode != 0:
			r.Details = append(r.Details, fmt.Sprintf("%s has mode %04o, more than %04o", d.path, st.Mode().Perm(), d.mode))
		}
	}
	if len(r.Details) > 0 {
		r.Severity, r.Summary, r.Remedy = sevError, "directories of the service are not as they should be", "ucloud setup directories --apply"
	}
	return one(r)
}

// checkSandbox looks whether the kernel has what gateway.sandbox and userInstances.limits use. What the service has got of it
// stands in its own status.
func checkSandbox(_ context.Context, x *examination) []checkResult {
	r := checkResult{ID: "system.sandbox", Severity: sevOK}
	mode := "auto"
	if x.config != nil {
		mode = x.config.Gateway.Sandbox
	}
	version, err := sandbox.ABI()
	switch {
	case err == nil:
		r.Summary = fmt.Sprintf("the kernel has Landlock, version %d", version)
	case mode == "require":
		r.Severity, r.Summary = sevError, "the kernel has no Landlock, which gateway.sandbox demands: the gateway does not start"
		r.Remedy = "a kernel of 5.13 or later with lsm=landlock,... , or gateway.sandbox: auto"
	case mode == "auto":
		r.Severity, r.Summary = sevWarning, "the kernel has no Landlock: the gateway runs without a sandbox"
		r.Remedy = "a kernel of 5.13 or later with lsm=landlock,... , or gateway.sandbox: off"
	default:
		r.Severity, r.Summary = sevInfo, "the kernel has no Landlock, and gateway.sandbox is off"
	}
	if found, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		r.Details = append(r.Details, "cgroup controllers of this machine: "+strings.Join(strings.Fields(string(found)), " "))
	} else {
		r.Details = append(r.Details, "this machine has no cgroup v2 at /sys/fs/cgroup: instances have the limits of single processes only")
	}
	return one(r)
}

// checkIdentity looks an account up as a launch would.
func checkIdentity(ctx context.Context, x *examination) []checkResult {
	r := checkResult{ID: "identity", Severity: sevOK}
	name := x.user
	if name == "" {
		if _, err := x.dir.ByUID(ctx, 0); err != nil {
			r.Severity, r.Summary = sevError, "the name service does not find root: "+failure.Why(err)
		} else {
			r.Summary = "the name service answers; --user NAME checks an account"
		}
		return one(r)
	}
	acc, err := x.dir.ByName(ctx, name)
	if err != nil {
		r.Severity, r.Summary = sevError, failure.Why(err)
		return one(r)
	}
	o := localuser.PolicyOptions{Group: x.names.group, MinUID: 1000, Denied: []string{"root", x.account}}
	if x.config != nil {
		u := x.config.UserInstances
		o.MinUID, o.MaxUID, o.Denied = ident.UID(u.MinUID), ident.UID(u.MaxUID), u.DeniedUsers
	}
	if svc, err := x.dir.ByName(ctx, x.account); err == nil {
		o.ServiceUID = svc.UID
	}
	if _, err := localuser.NewPolicy(x.dir, o).Check(ctx, acc.UID, acc.Name); err != nil {
		r.Severity, r.Summary = sevError, failure.Why(err)
		return one(r)
	}
	r.Summary = fmt.Sprintf("%s (uid %d) may have an instance", acc.Name, acc.UID)
	return one(r)
}

// checkService takes over what the running server says about itself.
func checkService(ctx context.Context, x *examination) []checkResult {
	rep, err := call(ctx, x.a, ipcapi.ServiceStatus, ipcapi.Empty{})
	if err != nil {
		e := classify(ctx, err)
		r := checkResult{ID: "service", Severity: sevError, Summary: e.text, Remedy: e.hint}
		if e.code == ExitPermission {
			r.Severity = sevSkipped
		}
		return one(r)
	}
	var out []checkResult
	for _, p := range rep.Parts {
		r := checkResult{ID: "service." + p.Name, Severity: string(p.Health), Summary: p.Summary}
		for _, f := range p.Facts {
			r.Details = append(r.Details, f.Name+": "+f.Value)
		}
		out = append(out, r)
	}
	if rep.Development {
		out = append(out, checkResult{ID: "service.development", Severity: sevInfo, Summary: "development switches are on: not for production"})
	}
	return out
}
