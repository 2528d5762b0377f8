package slurm

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// TRES are trackable resources by name: "cpu", "mem" (bytes), "node", "billing", "gres/gpu", "gres/gpu:a100".
type TRES map[string]int64

// ParseTRES parses "billing=128,cpu=128,mem=500G,node=2". Suffixes are binary multiples; what mem has without one are
// megabytes, as everywhere in Slurm. An empty text is none.
func ParseTRES(s string) (TRES, error) {
	if s == "" || s == "(null)" || s == "N/A" {
		return nil, nil
	}
	out := TRES{}
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is no list of resources", cut(s))
		}
		n, err := parseAmount(value, name == "mem" || name == "vmem")
		if err != nil {
			return nil, err
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%q names %s twice", cut(s), cut(name))
		}
		out[name] = n
	}
	return out, nil
}

// parseAmount parses "16", "500G", "1.50T". Megabytes are the unit of memory without a suffix.
func parseAmount(s string, memory bool) (int64, error) {
	number, shift := s, 0
	if memory {
		shift = 20
	}
	if s != "" {
		if i := strings.IndexByte("KMGTPE", s[len(s)-1]); i >= 0 {
			number, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 || n > math.MaxInt64>>shift {
			return 0, fmt.Errorf("%q is no amount", cut(s))
		}
		return n << shift, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f < 0 || strings.Trim(number, "0123456789.") != "" || f*float64(int64(1)<<shift) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is no amount", cut(s))
	}
	return int64(math.Round(f * float64(int64(1)<<shift))), nil
}

// parseCount parses a number of nodes or processors, which may have a suffix ("1K").
func parseCount(s string) (int, error) {
	n, err := parseAmount(s, false)
	if err != nil || n > maxCount {
		return 0, fmt.Errorf("%q is no number", cut(s))
	}
	return int(n), nil
}

// parseDuration parses [D-]HH:MM:SS, MM:SS and, as squeue prints short ones, M:SS. What is not known is 0.
func parseDuration(s string) (d time.Duration, unlimited bool, err error) {
	switch s {
	case "UNLIMITED", "Unlimited", "infinite", "INFINITE":
		return 0, true, nil
	case "", "INVALID", "NOT_SET", "N/A", "Partition_Limit", "Unknown", "None":
		return 0, false, nil
	}
	bad := func() (time.Duration, bool, error) { return 0, false, fmt.Errorf("%q is no duration", cut(s)) }
	rest := s
	var total int64
	if days, after, ok := strings.Cut(rest, "-"); ok {
		n, err := digits(days)
		if err != nil || n > 100_000 {
			return bad()
		}
		total, rest = n*24*3600, after
		if strings.Count(rest, ":") != 2 {
			return bad()
		}
	}
	var parts [3]int64
	count := 0
	for part := range strings.SplitSeq(rest, ":") {
		n, err := digits(part)
		if err != nil || count == 3 || (count > 0 && (n > 59 || len(part) != 2)) || n > 10_000_000 {
			return bad()
		}
		parts[count] = n
		count++
	}
	switch count {
	case 2:
		total += parts[0]*60 + parts[1]
	case 3:
		total += parts[0]*3600 + parts[1]*60 + parts[2]
	default:
		return bad()
	}
	return time.Duration(total) * time.Second, false, nil
}

// digits parses a number that consists of digits only.
func digits(s string) (int64, error) {
	if s == "" || len(s) > 18 {
		return 0, strconv.ErrSyntax
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, strconv.ErrSyntax
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

// parseTime parses a time in seconds, which is what the commands are told to print. What is not known is zero.
func parseTime(s string) (time.Time, error) {
	switch s {
	case "", "Unknown", "None", "N/A", "NONE", "(null)", "0":
		return time.Time{}, nil
	}
	n, err := digits(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time", cut(s))
	}
	return time.Unix(n, 0).UTC(), nil
}
