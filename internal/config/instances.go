package config

// The ways to start a user instance.
const (
	LauncherSudo    = "sudo"
	LauncherSystemd = "systemd"
	LauncherSelf    = "self"
)

// UserInstances say who gets an instance and what it may use (contract 40 section 5).
type UserInstances struct {
	Group           Name            `key:"group" reload:"restart" default:"ucloud_users" doc:"Only members of this local group can be launched. It must exist."`
	MinUID          int             `key:"minUid" default:"1000" min:"1" max:"4294967293" doc:"Lower uids are refused in every mapping, launch and script reply; 0 is never possible."`
	MaxUID          int             `key:"maxUid" default:"4294967293" min:"1" max:"4294967293" doc:"Higher uids are refused."`
	DeniedUsers     []string        `key:"deniedUsers" default:"[ucloud, root]" doc:"Local accounts that never get an instance."`
	IdleTimeout     Duration        `key:"idleTimeout" default:"30m" zero:"yes" doc:"An instance without request, task and terminal ends after this; 0 = never."`
	MaxInstances    int             `key:"maxInstances" default:"500" min:"1" max:"100000" doc:"Above it the longest idle one is stopped; if none is idle, the launch is refused."`
	StartTimeout    Duration        `key:"startTimeout" default:"15s" max:"10m" doc:"Time until an instance must be ready."`
	StartParallel   int             `key:"startParallel" flags:"added" default:"0" min:"0" max:"1000" doc:"Instances that start at the same time; 0 = 1.5 times the cores."`
	Restart         InstanceRestart `key:"restart" doc:"Protection against crash loops."`
	DrainTimeout    Duration        `key:"drainTimeout" default:"30s" zero:"yes" doc:"Time for uploads and terminals on an orderly stop."`
	ServerLossGrace Duration        `key:"serverLossGrace" default:"2m" doc:"How long an instance survives without the server."`
	Limits          InstanceLimits  `key:"limits" doc:"Of one instance with all that it starts, where the service manager has given the server a cgroup with controllers; otherwise memory and openFiles of each process."`
	TotalLimits     TotalLimits     `key:"totalLimits" flags:"added" doc:"Of all instances together, in the same cgroup."`
	Cgroup          string          `key:"cgroup" flags:"added" reload:"restart" enum:"auto,off" default:"auto" doc:"auto: use the cgroup that the service manager has delegated to the server."`
	Umask           Mode            `key:"umask" default:"0007" doc:"Umask of an instance, octal."`
	Launcher        string          `key:"launcher" enum:"sudo,systemd,self" reload:"restart" default:"sudo" doc:"sudo and systemd need rules made by ucloud setup. self (only with development.enabled): instances run as the account of the server, for one mapped user."`
	Sudo            Path            `key:"sudo" flags:"added" reload:"restart" default:"/usr/bin/sudo" doc:"The sudo program."`
	Executable      Path            `key:"executable" flags:"added" reload:"restart" default:"/usr/libexec/ucloud/ucloud-user" doc:"The program of an instance, exactly as in the sudo rule. Owner root, not writable by others."`
}

// InstanceRestart is the crash-loop protection: at most Max restarts within Window.
type InstanceRestart struct {
	Max    int      `key:"max" default:"5" min:"0" max:"1000" doc:"Restarts within the window."`
	Window Duration `key:"window" default:"10m" max:"1d" doc:"Length of the window."`
}

// InstanceLimits bound what one user's instance can use.
type InstanceLimits struct {
	Memory    Size    `key:"memory" default:"1GiB" min:"64MiB" doc:"Memory."`
	CPU       Percent `key:"cpu" default:"200%" doc:"CPU time; 100% is one core."`
	Tasks     int     `key:"tasks" default:"256" min:"16" max:"1000000" doc:"Threads and processes."`
	OpenFiles int     `key:"openFiles" default:"65536" min:"256" max:"1048576" doc:"Open descriptors."`
}

// TotalLimits bound what all instances can use together.
type TotalLimits struct {
	Memory Size `key:"memory" flags:"added" default:"0" zero:"yes" doc:"Memory; 0 = no limit."`
	Cores  int  `key:"cores" flags:"added" default:"0" min:"0" max:"100000" doc:"Processor cores; 0 = no limit."`
	Tasks  int  `key:"tasks" flags:"added" default:"0" min:"0" max:"10000000" doc:"Threads and processes; 0 = no limit."`
}
