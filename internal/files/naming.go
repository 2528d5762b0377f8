package files

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"ucloud-im/internal/drives"
)

// maxCandidates is the highest number that is tried for a name that is taken.
const maxCandidates = 9999

// candidate is the n-th alternative for a name that is taken: name(n).ext, where the extension follows the last dot
// unless that is the first character (contract 10 section 8). The result is at most [drives.MaxName] bytes long; for
// that the stem is cut between two characters, and the extension too if it is nearly everything.
func candidate(name string, n int) string {
	stem, ext := name, ""
	if dot := strings.LastIndexByte(name, '.'); dot > 0 {
		stem, ext = name[:dot], name[dot:]
	}
	number := fmt.Sprintf("(%d)", n)
	if len(number)+len(ext) >= drives.MaxName {
		stem, ext = name, ""
	}
	for len(stem)+len(number)+len(ext) > drives.MaxName {
		_, size := utf8.DecodeLastRuneInString(stem)
		stem = stem[:len(stem)-size]
	}
	return stem + number + ext
}
