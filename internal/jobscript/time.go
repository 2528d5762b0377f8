package jobscript

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/failure"
)

// FormatTime writes a time limit the way sbatch reads it, HH:MM:SS, rounded up to whole seconds.
func FormatTime(d time.Duration) string {
	s := int64((d + time.Second - 1) / time.Second)
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

// maxTime is a year; more is a slip.
const maxTime = 366 * 24 * time.Hour

// ParseTime reads a time limit in the forms that sbatch knows: minutes, minutes:seconds, hours:minutes:seconds, days-hours,
// days-hours:minutes and days-hours:minutes:seconds.
func ParseTime(text string) (time.Duration, error) {
	bad := failure.New(failure.Invalid, "%q is not a time limit", text)
	days, rest, withDays := strings.Cut(text, "-")
	if !withDays {
		rest, days = text, "0"
	}
	fields := strings.Split(rest, ":")
	var units []time.Duration
	switch {
	case withDays && len(fields) <= 3:
		units = []time.Duration{time.Hour, time.Minute, time.Second}
	case len(fields) == 1:
		units = []time.Duration{time.Minute}
	case len(fields) == 2:
		units = []time.Duration{time.Minute, time.Second}
	case len(fields) == 3:
		units = []time.Duration{time.Hour, time.Minute, time.Second}
	default:
		return 0, bad
	}
	var total time.Duration
	add := func(field string, unit time.Duration) bool {
		n, err := strconv.ParseUint(field, 10, 31)
		if err != nil || time.Duration(n) > maxTime/unit {
			return false
		}
		total += time.Duration(n) * unit
		return true
	}
	if !add(days, 24*time.Hour) {
		return 0, bad
	}
	for i, field := range fields {
		if !add(field, units[i]) {
			return 0, bad
		}
	}
	if total <= 0 || total > maxTime {
		return 0, bad
	}
	return total, nil
}
