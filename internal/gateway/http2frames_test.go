package gateway

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"strconv"
	"testing"
	"time"
)

// The HTTP/2 clients that exist refuse to send what these tests need, so they write their frames themselves (RFC 9113
// section 4.1, RFC 7541).

const (
	frameHeaders  = 1
	frameReset    = 3
	frameSettings = 4
	frameGoAway   = 7
)

func http2Frame(w io.Writer, kind, flags byte, stream uint32, payload []byte) error {
	head := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	head = binary.BigEndian.AppendUint32(head, stream)
	_, err := w.Write(append(head, payload...))
	return err
}

// hpackLiteral encodes a field as "literal without indexing, new name", without Huffman coding.
func hpackLiteral(b []byte, name, value string) []byte {
	b = append(b, 0)
	for _, s := range []string{name, value} {
		if len(s) < 127 {
			b = append(b, byte(len(s)))
		} else { // RFC 7541 section 5.1
			b = append(b, 127)
			n := len(s) - 127
			for n >= 128 {
				b = append(b, byte(n)|128)
				n >>= 7
			}
			b = append(b, byte(n))
		}
		b = append(b, s...)
	}
	return b
}

// hpackStatus decodes the first field of a response, which is its status.
func hpackStatus(b []byte) string {
	for len(b) > 0 && b[0]&0xe0 == 0x20 { // dynamic table size update
		b = b[1:]
	}
	switch {
	case len(b) == 0:
		return "?"
	case b[0]&0x80 != 0: // indexed
		static := map[byte]string{8: "200", 9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}
		return static[b[0]&0x7f]
	case len(b) < 2 || len(b) < 2+int(b[1]&0x7f):
		return "?"
	}
	value := b[2 : 2+int(b[1]&0x7f)]
	if b[1]&0x80 == 0 {
		return string(value)
	}
	// Huffman: the digits 0 to 2 have 5 bits, 3 to 9 have 6 (RFC 7541 appendix B).
	var bits uint64
	n := 0
	for _, c := range value {
		bits, n = bits<<8|uint64(c), n+8
	}
	out := ""
	for n >= 5 && len(out) < 3 {
		if five := bits >> (n - 5) & 31; five < 3 {
			out, n = out+strconv.Itoa(int(five)), n-5
			continue
		}
		out, n = out+strconv.Itoa(int(bits>>(n-6)&63)-0b011001+3), n-6
	}
	return out
}

// http2Request sends one HEADERS frame and gives the status, or "" if the stream or the connection ends without one.
func http2Request(t *testing.T, address string, fields [][2]string) string {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	http2Frame(c, frameSettings, 0, 0, nil)
	var block []byte
	for _, kv := range fields {
		block = hpackLiteral(block, kv[0], kv[1])
	}
	if err := http2Frame(c, frameHeaders, 0x4|0x1, 1, block); err != nil { // END_HEADERS, END_STREAM
		t.Fatal(err)
	}
	for {
		var head [9]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return ""
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return ""
		}
		switch head[3] {
		case frameHeaders:
			return hpackStatus(payload)
		case frameReset, frameGoAway:
			return ""
		}
	}
}
