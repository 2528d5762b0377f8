package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// parseMoment reads a time as people give it: RFC 3339, a date (its beginning, local zone), or a span from now such as
// 90m, 12h or 30d (contract 41 CLI-12).
func parseMoment(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, int(n)), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(d), nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a time (2031-02-03, 2031-02-03T09:00:00Z) nor a span (2h, 3d)", clean(s))
}

// expiry reads the flag --expires; empty means never.
func (a *app) expiry(s string) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	t, err := parseMoment(s, a.hooks.Now())
	if err != nil {
		return nil, usagef("--expires: %v", err)
	}
	if !t.After(a.hooks.Now()) {
		return nil, usagef("--expires: %s has passed already", s)
	}
	t = t.UTC()
	return &t, nil
}

// span shows a number of seconds the way people say it.
func span(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d d", int(d.Hours())/24)
}

// bytesText shows a size.
func bytesText(n int64) string {
	switch {
	case n <= 0:
		return ""
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
