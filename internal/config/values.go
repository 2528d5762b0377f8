package config

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// badValue says why a text is no value of a type, and what would be one. Neither part repeats a secret.
type badValue struct{ message, remedy string }

func (e *badValue) Error() string { return e.message }

func bad(remedy, format string, args ...any) error {
	return &badValue{message: fmt.Sprintf(format, args...), remedy: remedy}
}

// quote shows a value in a message, cut to a readable length.
func quote(text string) string {
	if r := []rune(text); len(r) > 60 {
		text = string(r[:60]) + "…"
	}
	return strconv.Quote(text)
}

// Size is a number of bytes (contract 40 section 2). Decimal (kB, MB, GB …) and binary units (KiB, MiB, GiB …) are kept
// apart: 1 GB is 10^9 bytes, 1 GiB is 2^30.
type Size int64

type sizeUnit struct {
	name  string
	bytes float64
}

// sizeUnits is ordered so that the largest unit that divides a size comes first.
var sizeUnits = []sizeUnit{
	{"EiB", 1 << 60},
	{"EB", 1e18},
	{"PiB", 1 << 50},
	{"PB", 1e15},
	{"TiB", 1 << 40},
	{"TB", 1e12},
	{"GiB", 1 << 30},
	{"GB", 1e9},
	{"MiB", 1 << 20},
	{"MB", 1e6},
	{"KiB", 1 << 10},
	{"kB", 1e3},
	{"KB", 1e3},
	{"B", 1},
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,18}) ?([A-Za-z]+)$`)

// ParseSize reads a size such as 64MiB, 10GB or 0.
func ParseSize(text string) (Size, error) {
	const remedy = "write a number with a unit, such as 64MiB or 10GB"
	if text == "0" {
		return 0, nil
	}
	m := sizeForm.FindStringSubmatch(text)
	if m == nil {
		return 0, bad(remedy, "%s is not a size", quote(text))
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, bad(remedy, "%s is not a size", quote(text))
	}
	for _, u := range sizeUnits {
		if u.name != m[2] {
			continue
		}
		if f := float64(n) * u.bytes; f >= math.MaxInt64 {
			return 0, bad("the largest size is 8EiB - 1", "%s is too large", quote(text))
		}
		return Size(n * int64(u.bytes)), nil
	}
	return 0, bad(remedy, "%s is not a unit of size (B, kB, MB, GB, TB, PB, EB, KiB, MiB, GiB, TiB, PiB, EiB)", quote(m[2]))
}

// Bytes is the size as a plain number.
func (s Size) Bytes() int64 { return int64(s) }

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if int64(s)%int64(u.bytes) == 0 {
			return fmt.Sprintf("%d%s", int64(s)/int64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s)) // not reached: 1 divides everything
}

type durationUnit struct {
	name string
	unit time.Duration
}

var durationUnits = []durationUnit{
	{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond},
}

var durationForm = regexp.MustCompile(`^([0-9]{1,16})(ms|s|m|h|d)$`)

// ParseDuration reads a duration such as 250ms, 30s, 15m, 24h or 7d (contract 40 section 2). 0 needs no unit.
func ParseDuration(text string) (time.Duration, error) {
	const remedy = "write a whole number with a unit: 250ms, 30s, 15m, 24h or 7d"
	if text == "0" {
		return 0, nil
	}
	m := durationForm.FindStringSubmatch(text)
	if m == nil {
		return 0, bad(remedy, "%s is not a duration", quote(text))
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, bad(remedy, "%s is not a duration", quote(text))
	}
	for _, u := range durationUnits {
		if u.name == m[2] {
			if n > int64(math.MaxInt64/u.unit) {
				return 0, bad("the longest duration is about 100000d", "%s is too long", quote(text))
			}
			return time.Duration(n) * u.unit, nil
		}
	}
	return 0, bad(remedy, "%s is not a duration", quote(text))
}

// FormatDuration writes a duration in the form that [ParseDuration] reads, with the largest unit that divides it.
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	for _, u := range durationUnits {
		if d%u.unit == 0 {
			return fmt.Sprintf("%d%s", d/u.unit, u.name)
		}
	}
	return d.String()
}

// Path is an absolute, normalised path (contract 40 section 2). Relative paths in the few places that allow them are
// already joined with the configuration directory.
type Path string

// String is the path.
func (p Path) String() string { return string(p) }

func parsePath(text string, relativeTo string) (Path, error) {
	const remedy = "write an absolute path such as /var/lib/ucloud, without .."
	switch {
	case text == "":
		return "", bad(remedy, "the path is empty")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", bad(remedy, "the path contains a control character")
	case len(text) > 4095:
		return "", bad(remedy, "the path is longer than 4095 bytes")
	}
	for part := range strings.SplitSeq(text, "/") {
		if part == ".." {
			return "", bad(remedy, "%s contains ..", quote(text))
		}
	}
	if !strings.HasPrefix(text, "/") {
		if relativeTo == "" {
			return "", bad(remedy, "%s is not an absolute path", quote(text))
		}
		text = path.Join(relativeTo, text)
	}
	return Path(path.Clean(text)), nil
}

// Name is a short identifier: [a-z0-9][a-z0-9._-]{0,62}.
type Name string

// String is the name.
func (n Name) String() string { return string(n) }

var (
	nameForm     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	categoryForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)
	groupForm    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$`)
	envForm      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

func parseName(text string) (Name, error) {
	if !nameForm.MatchString(text) {
		return "", bad("use small letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit", "%s is not a name", quote(text))
	}
	return Name(text), nil
}

// checkKey decides about the keys of a map by the kind that the field's tag names.
func checkKey(form, key string) error {
	switch form {
	case "category":
		if !categoryForm.MatchString(key) {
			return bad("use letters, digits, '.', '_' and '-', at most 100", "%s cannot be the name of a product category", quote(key))
		}
	case "env":
		if !envForm.MatchString(key) {
			return bad("use letters, digits and '_'", "%s cannot be the name of an environment variable", quote(key))
		}
		if strings.HasPrefix(key, "UCLOUD_") { // what a script is told stands there (contract 42 SCR-5)
			return bad("choose another name", "%s cannot be set: variables that begin with UCLOUD_ are set by this program", quote(key))
		}
	case "text":
		if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("write a plain word", "%s cannot be a key", quote(key))
		}
	default:
		if !groupForm.MatchString(key) {
			return bad("use letters, digits, '.', '_' and '-', at most 63", "%s cannot be a name here", quote(key))
		}
	}
	return nil
}

// Mode is a set of permission bits, written in octal: 0700, "2770".
type Mode uint32

// String is the octal form with four digits.
func (m Mode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

func parseMode(text string) (Mode, error) {
	digits := strings.TrimPrefix(text, "0o")
	n, err := strconv.ParseUint(digits, 8, 32)
	if err != nil || n > 0o7777 || digits == "" {
		return 0, bad("write octal digits such as 0700 or 2770", "%s is not a set of permission bits", quote(text))
	}
	return Mode(n), nil
}

// Percent is a share in percent; 200 means two whole cores where it limits CPU.
type Percent int

// String is the number with its sign.
func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

func parsePercent(text string) (Percent, error) {
	digits, ok := strings.CutSuffix(text, "%")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n <= 0 || n > 1_000_000 || digits[0] == '+' {
		return 0, bad("write a positive number with a percent sign, such as 200%", "%s is not a percentage", quote(text))
	}
	return Percent(n), nil
}

// Money is an amount in millionths of the currency (contract 30, "Price"), always above zero.
type Money int64

var moneyForm = regexp.MustCompile(`^([0-9]{1,12})(?:\.([0-9]{1,6}))?$`)

// Millionths is the amount as the product calls of UCloud/Core want it.
func (m Money) Millionths() int64 { return int64(m) }

// String is the decimal text.
func (m Money) String() string {
	text := fmt.Sprintf("%d.%06d", int64(m)/1e6, int64(m)%1e6)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

func parseMoney(text string) (Money, error) {
	const remedy = "write a decimal number above zero with at most 6 digits after the point"
	m := moneyForm.FindStringSubmatch(text)
	if m == nil {
		return 0, bad(remedy, "%s is not an amount of money", quote(text))
	}
	whole, _ := strconv.ParseInt(m[1], 10, 64) // at most 12 digits, checked above
	part, _ := strconv.ParseInt((m[2] + "000000")[:6], 10, 64)
	if whole == 0 && part == 0 {
		return 0, bad(remedy, "the amount is zero")
	}
	return Money(whole*1e6 + part), nil
}

// PortRange is a range of TCP ports, both ends included. The zero value means none.
type PortRange struct{ First, Last uint16 }

// String is the form first-last.
func (r PortRange) String() string {
	if r == (PortRange{}) {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Contains tells whether the port lies in the range.
func (r PortRange) Contains(port uint16) bool {
	return r.Last != 0 && port >= r.First && port <= r.Last
}

// Overlaps tells whether the ranges share a port.
func (r PortRange) Overlaps(o PortRange) bool {
	return r.Last != 0 && o.Last != 0 && r.First <= o.Last && o.First <= r.Last
}

func parsePortRange(text string) (PortRange, error) {
	const remedy = "write two ports from 1 to 65535, such as 42000-49999"
	a, b, ok := strings.Cut(text, "-")
	first, err1 := strconv.ParseUint(a, 10, 16)
	last, err2 := strconv.ParseUint(b, 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 {
		return PortRange{}, bad(remedy, "%s is not a range of ports", quote(text))
	}
	if last < first {
		return PortRange{}, bad(remedy, "the range %s ends before it starts", quote(text))
	}
	return PortRange{uint16(first), uint16(last)}, nil
}

// IDRange is a range of numeric user or group ids, both ends included. The zero value means none.
type IDRange struct{ First, Last uint32 }

// String is the form first-last.
func (r IDRange) String() string {
	if r == (IDRange{}) {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func parseIDRange(text string) (IDRange, error) {
	const remedy = "write two ids above 0, such as 30000-39999"
	a, b, ok := strings.Cut(text, "-")
	first, err1 := strconv.ParseUint(a, 10, 32)
	last, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil || first == 0 || last < first || last > maxID {
		return IDRange{}, bad(remedy, "%s is not a range of ids", quote(text))
	}
	return IDRange{uint32(first), uint32(last)}, nil
}

// maxID is the highest usable uid or gid: 2^32-1 means "no id" to the kernel and 2^32-2 is nobody's by custom.
const maxID = 4294967293

func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			return netip.PrefixFrom(a, a.BitLen()), nil
		}
		return p, bad("write a network such as 10.0.0.0/8 or 2001:db8::/32", "%s is not a network", quote(text))
	}
	if p != p.Masked() {
		return p, bad("write "+p.Masked().String(), "%s has bits set outside its mask", quote(text))
	}
	return p, nil
}

func parseAddr(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return a, bad("write an address such as 127.0.0.1 or ::1", "%s is not an IP address", quote(text))
	}
	return a, nil
}
