package sshkeys

import (
	"bytes"
	"strings"
)

// The marks of our block, and the end of each line in it. The provider is in them: a home directory may be used by more
// than one.
func (s *Service) begin() string {
	return "# BEGIN keys from UCloud (" + s.o.Provider + "), do not edit"
}
func (s *Service) end() string  { return "# END keys from UCloud (" + s.o.Provider + ")" }
func (s *Service) tail() string { return " ucloud:" + s.o.Provider + marker }

// marker ends the lines that modules of UCloud's providers have written, also those of other programs than this one
// (contract 23 section 4).
const marker = " ucloud-integration"

// ours tells whether a line is one of ours. One with the marker that names no provider was left by the module that has
// served here before: its key may have been removed at UCloud since, and those that were not are in our lines.
func (s *Service) ours(line []byte) bool {
	key, marked := bytes.CutSuffix(line, []byte(marker))
	if !marked || bytes.HasPrefix(line, []byte("#")) {
		return false
	}
	last := string(key[bytes.LastIndexByte(key, ' ')+1:])
	return !strings.HasPrefix(last, "ucloud:") || last == "ucloud:"+s.o.Provider
}

// merge gives the content of the file with the lines as our block, and everything else as it is. Our lines are known by
// their ends, so that a block of which somebody has removed a mark loses nothing that is not ours, and leaves nothing that
// is.
func (s *Service) merge(old []byte, lines []string) []byte {
	var out []byte
	place := -1 // of the block, if there was one
	for rest := old; len(rest) > 0; {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line = rest[:i+1]
		}
		rest = rest[len(line):]
		text := bytes.TrimRight(line, " \t\r\n")
		switch {
		case string(text) == s.begin():
			if place < 0 {
				place = len(out)
			}
		case string(text) == s.end(), s.ours(text):
		default:
			out = append(out, line...)
		}
	}
	if len(lines) == 0 {
		return out
	}
	if place < 0 {
		place = len(out)
		if place > 0 && out[place-1] != '\n' {
			out = append(out, '\n')
			place++
		}
	}
	block := s.begin() + "\n"
	for _, l := range lines {
		block += l + "\n"
	}
	block += s.end() + "\n"
	return append(out[:place:place], append([]byte(block), out[place:]...)...)
}
