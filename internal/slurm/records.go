package slurm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds one row. Slurm itself bounds each of the texts that users choose to a few kilobytes.
const maxRecord = 1 << 20

// records reads rows of a fixed number of fields. Fields may contain anything but the separator, line breaks too, except
// for the last one, which ends with the line: so a row is over when it has all its separators and then a line break.
type records struct {
	r      *bufio.Reader
	sep    []byte
	fields int
	row    []byte   // of rows with line breaks in them
	out    [][]byte // of the last row
}

func newRecords(r io.Reader, sep string, fields int) *records {
	return &records{r: bufio.NewReaderSize(r, 64<<10), sep: []byte(sep), fields: fields, out: make([][]byte, 0, fields)}
}

// next gives the fields of the next row, which are valid until the next call, and io.EOF after the last whole row.
func (s *records) next() ([][]byte, error) {
	s.row = s.row[:0]
	for {
		line, err := s.r.ReadSlice('\n')
		if err == nil && len(s.row) == 0 && s.split(line[:len(line)-1]) {
			return s.out, nil // nearly always
		}
		s.row = append(s.row, line...)
		if len(s.row) > maxRecord {
			return nil, fmt.Errorf("%w: a row is longer than %d bytes", ErrIncomplete, maxRecord)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			if len(s.row) == 0 {
				return nil, io.EOF
			}
			return nil, fmt.Errorf("%w: the last row is not whole", ErrIncomplete)
		case err != nil:
			return nil, err
		}
		if s.split(s.row[:len(s.row)-1]) {
			return s.out, nil
		}
	}
}

// split divides a row, and tells whether it has all its fields.
func (s *records) split(row []byte) bool {
	out := s.out[:0]
	for len(out) < s.fields-1 {
		i := bytes.Index(row, s.sep)
		if i < 0 {
			return false
		}
		out = append(out, row[:i])
		row = row[i+len(s.sep):]
	}
	s.out = append(out, row)
	return !bytes.Contains(row, s.sep)
}

// interner keeps one copy of texts that occur in many rows.
type interner map[string]string

// maxInterned bounds the copies. They are forgotten together.
const maxInterned = 1 << 14

func (in interner) get(b []byte) string {
	if s, ok := in[string(b)]; ok {
		return s
	}
	if len(in) >= maxInterned {
		clear(in)
	}
	s := string(b)
	in[s] = s
	return s
}
