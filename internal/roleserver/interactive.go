package roleserver

import (
	"time"

	"ucloud-im/internal/config"
	"ucloud-im/internal/ipcapi"
)

// addInteractive adds the settings of terminals, logs and SSH keys for instances. Terminals in folders are there without
// jobs, too.
func addInteractive(cfg *config.Config, to *ipcapi.JobSettings) {
	t := cfg.Terminal
	to.Shell, to.ShellProgram, to.ShellMax = t.Enabled, t.Shell.String(), t.MaxSessionsPerUser
	to.ShellDetachMs, to.ShellIdleMs, to.ShellMaxMs = millis(t.Detach), millis(t.IdleTimeout), millis(t.MaxTime)
	if c := cfg.Services.Slurm; c != nil {
		to.ShellHosts, to.LogReplay = c.Shell, c.LogReplay.Bytes()
	}
	if ssh := cfg.Services.SSH; ssh.Enabled && ssh.InstallKeys {
		to.SSHInstallKeys, to.SSHKeysFile, to.SSHKeyTypes = true, ssh.AuthorizedKeysFile.String(), ssh.AllowedKeyTypes
	}
}

func millis(d config.Duration) int64 { return time.Duration(d).Milliseconds() }
