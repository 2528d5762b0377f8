package scripts

import (
	"bytes"
	"os"
)

// collector reads what a program writes: it keeps the beginning, counts everything, and never stops reading, so that a
// program that writes too much does not hang on us.
type collector struct {
	pipe  *os.File
	limit int
	line  func(string) // is told about each line; nil: nobody

	done chan struct{} // closed when reading has ended; then the fields below may be read
	kept []byte
	size int64
}

// maxLine bounds a line that is passed on.
const maxLine = 2000

func collect(pipe *os.File, limit int, line func(string)) *collector {
	c := &collector{pipe: pipe, limit: limit, line: line, done: make(chan struct{})}
	go c.run()
	return c
}

func (c *collector) run() {
	defer close(c.done)
	defer c.pipe.Close()
	buf := make([]byte, 32<<10)
	var pending []byte
	for {
		n, err := c.pipe.Read(buf)
		data := buf[:n]
		c.size += int64(n)
		c.kept = append(c.kept, data[:min(n, max(0, c.limit-len(c.kept)))]...)
		if c.line != nil {
			pending = c.lines(append(pending, data...))
		}
		if err != nil { // the end, or nobody waits any longer
			break
		}
	}
	if len(pending) > 0 {
		c.line(string(pending))
	}
}

// lines passes complete lines on, and what is too long for one, and returns the rest.
func (c *collector) lines(b []byte) []byte {
	for {
		i := bytes.IndexByte(b, '\n')
		switch {
		case i >= 0:
			c.line(string(b[:min(i, maxLine)]))
			b = b[i+1:]
		case len(b) > maxLine:
			c.line(string(b[:maxLine]))
			b = b[maxLine:]
		default:
			return bytes.Clone(b)
		}
	}
}

// overflow tells whether more was written than kept.
func (c *collector) overflow() bool { return c.size > int64(len(c.kept)) }
