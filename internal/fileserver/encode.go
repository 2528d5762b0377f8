package fileserver

import (
	"strconv"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/textstream"
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
		b = textstream.AppendString(b, *p.Next)
	}
	return append(b, '}')
}

// appendFile appends a file as JSON.
func appendFile(b []byte, f *providerapi.File) []byte {
	b = append(b, `{"id":`...)
	b = textstream.AppendString(b, f.ID)
	b = append(b, `,"createdAt":`...)
	b = strconv.AppendInt(b, int64(f.CreatedAt), 10)
	st := &f.Status
	b = append(b, `,"status":{"type":`...)
	b = textstream.AppendString(b, string(st.Type))
	if st.Icon != "" {
		b = append(b, `,"icon":`...)
		b = textstream.AppendString(b, st.Icon)
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
