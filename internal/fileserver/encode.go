package fileserver

import (
	"strconv"
	"unicode/utf8"

	"ucloud-im/internal/providerapi"
)

// The encoding of pages by hand: a page has up to a thousand entries of a dozen members, and package json would spend
// more time on them than the file system. TestEncodingEqualsPackageJSON compares the two.

// appendPage appends a page of files as JSON.
func appendPage(b []byte, p *providerapi.Page[providerapi.File]) []byte {
	b = append(b, `{"items":[`...)
	for i := range p.Items {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFile(b, &p.Items[i])
	}
	b = append(b, `],"itemsPerPage":`...)
	b = strconv.AppendInt(b, int64(p.ItemsPerPage), 10)
	b = append(b, `,"next":`...)
	if p.Next == nil {
		b = append(b, "null"...)
	} else {
		b = appendString(b, *p.Next)
	}
	return append(b, '}')
}

// appendFile appends a file as JSON.
func appendFile(b []byte, f *providerapi.File) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, f.ID)
	b = append(b, `,"createdAt":`...)
	b = strconv.AppendInt(b, int64(f.CreatedAt), 10)
	st := &f.Status
	b = append(b, `,"status":{"type":`...)
	b = appendString(b, string(st.Type))
	if st.Icon != "" {
		b = append(b, `,"icon":`...)
		b = appendString(b, st.Icon)
	}
	b = append(b, `,"sizeInBytes":`...)
	b = appendOptional(b, st.SizeInBytes, strconv.AppendInt)
	b = append(b, `,"sizeIncludingChildrenInBytes":`...)
	b = appendOptional(b, st.SizeIncludingChildrenInBytes, strconv.AppendInt)
	b = append(b, `,"fileCount":`...)
	b = appendOptional(b, st.FileCount, strconv.AppendUint)
	b = append(b, `,"directoryCount":`...)
	b = appendOptional(b, st.DirectoryCount, strconv.AppendUint)
	b = append(b, `,"modifiedAt":`...)
	b = strconv.AppendInt(b, int64(st.ModifiedAt), 10)
	b = append(b, `,"accessedAt":`...)
	b = strconv.AppendInt(b, int64(st.AccessedAt), 10)
	b = append(b, `,"unixMode":`...)
	b = strconv.AppendInt(b, int64(st.UnixMode), 10)
	b = append(b, `,"unixOwner":`...)
	b = strconv.AppendUint(b, uint64(st.UnixOwner), 10)
	b = append(b, `,"unixGroup":`...)
	b = strconv.AppendUint(b, uint64(st.UnixGroup), 10)
	// Metadata is Core's own; it overwrites what comes from here (contract 10 section 3.1).
	return append(b, `,"metadata":{"metadata":null}}}`...)
}

func appendOptional[T any](b []byte, v *T, appendNumber func([]byte, T, int) []byte) []byte {
	if v == nil {
		return append(b, "null"...)
	}
	return appendNumber(b, *v, 10)
}

// appendString appends a JSON string (RFC 8259 section 7). Text that is not valid UTF-8 does not occur here: names have
// been escaped. If it did, it would become U+FFFD, never an invalid document.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, s[start:i]...), `\ufffd`...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}
