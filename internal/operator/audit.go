package operator

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"unicode"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ipc"
)

// audit writes one line about a change.
func (s *Service) audit(r *ipc.Request, action string, err error, attrs ...slog.Attr) {
	level, result := slog.LevelInfo, "ok"
	if err != nil {
		level, result = slog.LevelWarn, strconv.Itoa(failure.KindOf(err).Status())
		attrs = append(attrs, slog.String("why", failure.Why(err)))
	}
	line := append([]slog.Attr{
		slog.String("action", action), slog.String("result", result),
		slog.Uint64("byUid", uint64(r.Peer.UID())), slog.Int("byPid", int(r.Peer.PID())),
	}, attrs...)
	if login, ok := loginUID(r.Peer.PID()); ok {
		line = append(line, slog.Uint64("byLoginUid", uint64(login)))
	}
	s.trail.LogAttrs(context.Background(), level, "command", line...)
}

// by names the caller in a stored record.
func by(r *ipc.Request) string { return fmt.Sprintf("uid %d", r.Peer.UID()) }

// loginUID is the uid with which the caller's session began, which survives su and sudo (pam_loginuid(8)). It is for the
// record only: the process may have ended, and its id may be somebody else's by now.
func loginUID(pid int32) (uint32, bool) {
	if pid <= 0 {
		return 0, false
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/loginuid", pid))
	if err != nil {
		return 0, false
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 32)
	const unset = 1<<32 - 1
	return uint32(uid), err == nil && uid != unset
}

// text makes a text from a caller fit for a log line and a page.
func text(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return strings.TrimSpace(s)
}
