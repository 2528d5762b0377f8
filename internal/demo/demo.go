// Package demo runs everything on one machine: a simulated Core with its console, a gateway, a server, and instances of
// real accounts. It is the main function of ucloud-dev and never shipped.
//
// At the start it makes a tour of what can be done with files, by the calls that a person makes in the console, and
// prints what it did.
//
// As root it makes a service account, a group and three users, installs the programs in directories that only root can
// write, and adds one sudo rule; what it made is written down so that [Clean] removes that and nothing else. As an
// ordinary user it runs everything as that user: the server starts instances directly, without sudo, for the one
// account there is; the tour waits until that one has connected.
package demo

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// Names of what the demo creates as root.
const (
	Provider       = "demo"
	ServiceAccount = "ucloud-demo"
	UsersGroup     = "ucloud-demo-users"
	projectGroup   = "ucloud-demo-proj"

	category = "demo-storage"
)

// person is a UCloud user of the demo with the local account meant for them.
type person struct {
	ucloud, local string
}

// Options configure the demo.
type Options struct {
	CorePort    int    // of the simulated Core, loopback
	GatewayPort int    // of the gateway, loopback
	Programs    string // directory with ucloud and ucloud-user
	Out         io.Writer
	Version     string
	LogLevel    string

	SignedIntents string // the provider's policy: off, log or require; with the latter two, Core forwards what users sign
	TakenOver     bool   // Core is in wrong hands, see [Attacker]
}

// layout is where the demo keeps things.
type layout struct {
	base, config, state, logs, run, programs, projects string
	root                                               bool
	uid, gid                                           int // of the service
	service                                            string
	people                                             []person
	tourist                                            person // for whom the demo itself acts; one of people unless root
	home                                               string // pattern of home drives
	userGroup                                          string
	partition                                          string // of Slurm; empty: jobs run without it
}

// plan decides where things go and as whom they run.
func plan() (layout, error) {
	if os.Geteuid() == 0 {
		return layout{
			root: true, base: "/var/lib/ucloud-demo", config: "/var/lib/ucloud-demo/config", state: "/var/lib/ucloud-demo/state",
			logs: "/var/lib/ucloud-demo/log", run: "/run/ucloud-demo", programs: "/usr/libexec/ucloud-demo",
			projects: "/var/lib/ucloud-demo-projects", service: ServiceAccount, userGroup: UsersGroup,
			people: []person{{"Ada#1815", "demo-ada"}, {"Grace#1906", "demo-grace"}}, tourist: person{"Mary#1834", "demo-mary"},
			home: "/home/#{localUsername}",
		}, nil
	}
	me, err := user.Current()
	if err != nil {
		return layout{}, fmt.Errorf("look up the current account: %w", err)
	}
	// The directory has to be short: a socket's path may not exceed 107 bytes.
	base := filepath.Join(os.TempDir(), "ucloud-demo-"+me.Uid)
	uid, _ := strconv.Atoi(me.Uid)
	gid, _ := strconv.Atoi(me.Gid)
	l := layout{
		base: base, config: filepath.Join(base, "config"), state: filepath.Join(base, "state"),
		logs: filepath.Join(base, "log"), run: filepath.Join(base, "run"), projects: filepath.Join(base, "projects"),
		service: me.Username, uid: uid, gid: gid, people: []person{{"Ada#1815", me.Username}}, home: me.HomeDir,
	}
	l.tourist = l.people[0]
	if filepath.Base(me.HomeDir) == me.Username {
		l.home = filepath.Join(filepath.Dir(me.HomeDir), "#{localUsername}")
	}
	if g, err := user.LookupGroupId(me.Gid); err == nil {
		l.userGroup = g.Name
	}
	return l, nil
}

func (l layout) socket() string { return filepath.Join(l.run, "ucloud.sock") }
