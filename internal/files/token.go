package files

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// order is what a listing is sorted by.
type order uint8

const (
	byPath order = iota
	bySize
	byModified
)

var orderNames = map[string]order{
	"": byPath, providerapi.SortByPath: byPath, providerapi.SortBySize: bySize, providerapi.SortByModifiedAt: byModified,
}

// mark is a place in the sort order: that of an entry with this key and name, whether it exists or not. The key is zero
// when sorting by path.
type mark struct {
	key  int64
	name []byte
}

// pageToken is the content of "next": where the listing goes on. It does not depend on anything that is remembered
// between requests; the generation merely allows to use an index that is older than the directory's last change.
type pageToken struct {
	order      order
	asked      order // what the client asked for; differs from order where sorting by it was not possible
	descending bool
	generation generation
	after      *mark // the last entry shown; nil after an unsorted first page
	shown      []uint64
	skip       uint64 // how many more entries to leave out before the next one is shown, see parsePosition
}

// generation numbers scans of directories. Two generations of one process are ordered by time.
type generation struct {
	process uint32 // random for each process
	serial  uint64
}

// An unsorted first page (see quickPage) has at most maxShown entries, since the hashes of all of them travel in the
// tokens of the pages that follow.
const (
	tokenVersion  = 1
	maxShown      = 128
	maxTokenChars = 2200
)

const (
	tokenDescending = 1 << 4
	tokenHasMark    = 1 << 5
	tokenHasSkip    = 1 << 6
)

// encode gives the text of the token: URL-safe base64 of the version, the fields and a checksum. It has at most
// maxTokenChars characters.
func (t *pageToken) encode() string {
	b := make([]byte, 0, 64)
	b = append(b, tokenVersion)
	flags := byte(t.order) | byte(t.asked)<<2
	if t.descending {
		flags |= tokenDescending
	}
	if t.after != nil {
		flags |= tokenHasMark
	}
	if t.skip > 0 {
		flags |= tokenHasSkip
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint32(b, t.generation.process)
	b = binary.AppendUvarint(b, t.generation.serial)
	if t.skip > 0 {
		b = binary.AppendUvarint(b, t.skip)
	}
	if t.after != nil {
		b = binary.AppendVarint(b, t.after.key)
		b = append(b, byte(len(t.after.name)))
		b = append(b, t.after.name...)
	}
	b = append(b, byte(len(t.shown)))
	for _, h := range t.shown {
		b = binary.BigEndian.AppendUint64(b, h)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseToken reads a token. Anything that encode did not write is refused with 400; the text comes from the client.
func parseToken(text string) (*pageToken, error) {
	bad := failure.New(failure.Invalid, "The page token is not valid")
	if len(text) > maxTokenChars || strings.ContainsAny(text, "\r\n") {
		return nil, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 12 {
		return nil, bad
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if b[0] != tokenVersion || crc32.ChecksumIEEE(b) != sum {
		return nil, bad
	}
	flags := b[1]
	t := &pageToken{
		order: order(flags & 3), asked: order(flags >> 2 & 3), descending: flags&tokenDescending != 0,
		generation: generation{process: binary.BigEndian.Uint32(b[2:])},
	}
	if t.order > byModified || t.asked > byModified || flags&^(15|tokenDescending|tokenHasMark|tokenHasSkip) != 0 {
		return nil, bad
	}
	rest := b[6:]
	serial, n := binary.Uvarint(rest)
	if n <= 0 {
		return nil, bad
	}
	t.generation.serial, rest = serial, rest[n:]
	if flags&tokenHasSkip != 0 {
		skip, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, bad
		}
		t.skip, rest = skip, rest[n:]
	}
	if flags&tokenHasMark != 0 {
		key, n := binary.Varint(rest)
		if n <= 0 || len(rest) <= n || len(rest) < n+1+int(rest[n]) {
			return nil, bad
		}
		name := bytes.Clone(rest[n+1 : n+1+int(rest[n])])
		if drives.CheckName(string(name)) != nil {
			return nil, bad
		}
		t.after, rest = &mark{key: key, name: name}, rest[n+1+len(name):]
	}
	if len(rest) == 0 || int(rest[0]) > maxShown || len(rest) != 1+8*int(rest[0]) {
		return nil, bad
	}
	for h := range slices.Chunk(rest[1:], 8) {
		t.shown = append(t.shown, binary.BigEndian.Uint64(h))
	}
	if t.encode() != text {
		return nil, bad // a second spelling, such as a number with leading zeros
	}
	return t, nil
}

// maxPositionDigits is what fits into 64 bits.
const maxPositionDigits = 19

// parsePosition reads a token of the providers whose tokens are plain positions in the sorted listing (contract 10
// section 5.1, recording 07). A client may still hold one when a site has changed over from such a provider. It stands
// for no listing of ours, so it begins one that leaves out that many entries; all further tokens are our own, which
// never consist of digits alone: they begin with the version.
func parsePosition(text string) (skip uint64, ok bool) {
	if len(text) > maxPositionDigits || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	skip, err := strconv.ParseUint(text, 10, 64)
	return skip, err == nil
}

// nameHash identifies an entry that an unsorted first page has shown. Two names of one directory share a hash by
// accident with a probability below 1e-11 even among millions.
func nameHash(name []byte) uint64 {
	h := fnv.New64a()
	h.Write(name) //nolint:errcheck // never fails
	return h.Sum64()
}

// isAfter tells whether a is after b in the direction of the listing, c being how a compares to b.
func isAfter(c int, descending bool) bool {
	if descending {
		return c < 0
	}
	return c > 0
}

// clampPage applies the limits of contract 10 section 5.1 to the requested page size.
func clampPage(n int) int {
	const standard, most = 50, 1000
	if n <= 0 {
		return standard
	}
	return min(n, most, math.MaxInt32)
}
