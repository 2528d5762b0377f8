package sshkeys

import "bytes"

// The marks of our block, and the end of each line in it. The provider is in them: a home directory may be used by more
// than one.
func (s *Service) begin() string {
	return "# BEGIN keys from UCloud (" + s.o.Provider + "), do not edit"
}
func (s *Service) end() string  { return "# END keys from UCloud (" + s.o.Provider + ")" }
func (s *Service) tail() string { return " ucloud:" + s.o.Provider }

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
		case string(text) == s.end(), bytes.HasSuffix(text, []byte(s.tail())) && !bytes.HasPrefix(text, []byte("#")):
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
