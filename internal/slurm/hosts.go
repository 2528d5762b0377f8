package slurm

import (
	"fmt"
	"strconv"
	"strings"
)

// ExpandNodes gives the names in a list such as "c[1-3,7],gpu[01-04],r[1-2]n[1-4]", at most limit of them, without
// asking Slurm (contract 22 section 12.2). More than that, or a list that is not understood, is an error.
func ExpandNodes(list string, limit int) ([]string, error) {
	switch list {
	case "", "None assigned", "(null)", "None", "N/A":
		return nil, nil
	}
	if len(list) > 1<<20 {
		return nil, fmt.Errorf("a list of nodes has %d bytes", len(list))
	}
	var out []string
	for start, depth, i := 0, 0, 0; i <= len(list); i++ {
		if i < len(list) {
			switch list[i] {
			case '[':
				depth++
			case ']':
				depth--
			}
			if depth < 0 || depth > 1 {
				return nil, fmt.Errorf("the brackets of %q do not match", cut(list))
			}
			if list[i] != ',' || depth != 0 {
				continue
			}
		}
		if depth != 0 {
			return nil, fmt.Errorf("the brackets of %q do not match", cut(list))
		}
		names, err := expandName(list[start:i], limit-len(out))
		if err != nil {
			return nil, fmt.Errorf("%q: %w", cut(list), err)
		}
		out = append(out, names...)
		start = i + 1
	}
	return out, nil
}

// expandName expands one name, which may have several brackets.
func expandName(name string, limit int) ([]string, error) {
	out := []string{""}
	for name != "" {
		open := strings.IndexByte(name, '[')
		if open < 0 {
			open = len(name)
		}
		for i := range out {
			out[i] += name[:open]
		}
		if open == len(name) {
			break
		}
		end := strings.IndexByte(name, ']')
		if end < open {
			return nil, fmt.Errorf("brackets do not match")
		}
		numbers, err := expandRanges(name[open+1:end], limit/len(out))
		if err != nil {
			return nil, err
		}
		next := make([]string, 0, len(out)*len(numbers))
		for _, prefix := range out {
			for _, n := range numbers {
				next = append(next, prefix+n)
			}
		}
		out, name = next, name[end+1:]
	}
	for _, n := range out {
		if !validHost(n) {
			return nil, fmt.Errorf("%q is no name of a node", cut(n))
		}
	}
	if len(out) > limit {
		return nil, fmt.Errorf("more nodes than allowed")
	}
	return out, nil
}

// expandRanges expands "1-3,7" or "01-04".
func expandRanges(s string, limit int) ([]string, error) {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, errA := digits(from)
		b, errB := digits(to)
		if errA != nil || errB != nil || b < a {
			return nil, fmt.Errorf("%q is no range", cut(part))
		}
		if b-a >= int64(limit-len(out)) {
			return nil, fmt.Errorf("more nodes than allowed")
		}
		for n := a; n <= b; n++ {
			number := strconv.FormatInt(n, 10)
			if pad := len(from) - len(number); pad > 0 {
				number = strings.Repeat("0", pad) + number
			}
			out = append(out, number)
		}
	}
	return out, nil
}

// validHost tells whether a text may be the name of a node: it ends up in addresses and arguments.
func validHost(s string) bool {
	if s == "" || len(s) > 255 || s[0] == '-' || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}
