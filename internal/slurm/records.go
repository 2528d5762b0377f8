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
	ends   []int    // of the separators in the row
	out    [][]byte // of the last row
}

func newRecords(r io.Reader, sep string, fields int) *records {
	return &records{r: bufio.NewReaderSize(r, 64<<10), sep: []byte(sep), fields: fields, out: make([][]byte, 0, fields)}
}

// next gives the fields of the next row, which are valid until the next call, and io.EOF after the last whole row.
func (s *records) next() ([][]byte, error) {
	s.row = s.row[:0]
	s.ends = s.ends[:0]
	for {
		line, err := s.r.ReadSlice('\n')
		if err == nil && len(s.row) == 0 && s.find(line, 0) {
			return s.checked(line) // nearly always
		}
		// Separators are looked for once, however many lines the row has.
		from := max(0, len(s.row)-len(s.sep)+1)
		if len(s.row) == 0 {
			s.ends = s.ends[:0]
		} else if n := len(s.ends); n > 0 {
			from = max(from, s.ends[n-1])
		}
		s.row = append(s.row, line...)
		if len(s.row) > maxRecord {
			return nil, fmt.Errorf("%w: a row is longer than %d bytes", ErrIncomplete, maxRecord)
		}
		whole := s.find(s.row, from)
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
		if whole {
			return s.checked(s.row)
		}
	}
}

// find notes where separators end, from an offset on, and tells whether there are as many as a row has, or more.
func (s *records) find(row []byte, from int) bool {
	for len(s.ends) < s.fields {
		i := bytes.Index(row[from:], s.sep)
		if i < 0 {
			break
		}
		from += i + len(s.sep)
		s.ends = append(s.ends, from)
	}
	return len(s.ends) >= s.fields-1
}

// checked divides a row without its line break at the separators.
func (s *records) checked(row []byte) ([][]byte, error) {
	if len(s.ends) != s.fields-1 {
		return nil, fmt.Errorf("%w: a row with more fields than it may have", ErrIncomplete)
	}
	s.out = s.out[:0]
	start := 0
	for _, end := range s.ends {
		s.out = append(s.out, row[start:end-len(s.sep)])
		start = end
	}
	s.out = append(s.out, row[start:len(row)-1])
	return s.out, nil
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
