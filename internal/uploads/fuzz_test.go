package uploads

import (
	"encoding/binary"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// FuzzConnection sends messages to a service: a byte tells how many bytes the next one has, as binary or text. Whatever
// comes, the connection ends, nothing stays behind, and nothing happens outside of the folder.
func FuzzConnection(f *testing.F) {
	msg := func(text bool, b []byte) []byte {
		n := uint16(len(b)) << 1
		if text {
			n |= 1
		}
		return append(binary.BigEndian.AppendUint16(nil, n), b...)
	}
	bin := func(b ...[]byte) []byte { return msg(false, slices.Concat(b...)) }
	f.Add([]byte(nil))
	f.Add(bin(listing(listed{0, 3, someTime, "a"}, listed{1, 0, someTime, "d/e"})))
	f.Add(slices.Concat(bin(listing(listed{0, 3, someTime, "a"})), bin(chunk(0, "ab")), bin(chunk(0, "c")), bin(chunk(0, "d"))))
	f.Add(slices.Concat(bin(listing(listed{0, 70_000, someTime, "a"}, listed{-1, -1, -1, "../x"})), bin(chunk(0, strings.Repeat("x", 30_000))), bin(num(opSkip, 0), num(opSkip, -1), []byte{opClose})))
	f.Add(slices.Concat(msg(true, []byte("ping")), bin([]byte("ping")), msg(true, []byte("0 3"))))
	f.Add(bin(listing(listed{0, 1 << 62, 1 << 62, strings.Repeat("d/", 2047) + "x"})))
	f.Add(slices.Concat(bin(listing(listed{0, 1, 0, "link/x"}, listed{1, 1, 0, "old"}, listed{2, 1, 0, "old/x"})), bin(chunk(0, "!")), bin(chunk(1, "!"))))
	base := f.TempDir()
	w := newWorld(f, filepath.Join(base, "drive"), nil)
	write(f, filepath.Join(w.dir, "keep"), "keep")
	if err := os.Mkdir(filepath.Join(base, "outside"), 0o777); err != nil {
		f.Fatal(err)
	}
	s := w.session("/in", folder, rename)
	f.Fuzz(func(t *testing.T, raw []byte) {
		w.tb = t
		in := filepath.Join(w.dir, "in")
		os.RemoveAll(in)
		write(t, filepath.Join(in, "old"), "old")
		os.Symlink("../../outside", filepath.Join(in, "link"))
		c, _, err := websocket.Dial(t.Context(), s.Endpoint, nil)
		if err != nil {
			s = w.session("/in", folder, rename) // the last input has closed it
			if c, _, err = websocket.Dial(t.Context(), s.Endpoint, nil); err != nil {
				t.Fatal(err)
			}
		}
		for len(raw) >= 2 {
			n := int(binary.BigEndian.Uint16(raw))
			kind := websocket.MessageBinary
			if n&1 == 1 {
				kind = websocket.MessageText
			}
			n = min(n>>1, len(raw)-2)
			if c.Write(t.Context(), kind, raw[2:2+n]) != nil {
				break
			}
			raw = raw[2+n:]
		}
		c.CloseNow()
		w.settle()
		for len(w.reports) > 0 {
			<-w.reports
		}
		for len(w.closed) > 0 {
			<-w.closed
		}
		if entries, err := os.ReadDir(filepath.Join(base, "outside")); err != nil || len(entries) > 0 {
			t.Errorf("outside: %v, %v", entries, err)
		}
		for _, dir := range []string{base, w.dir} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
				t.Errorf("%s: %v, %v", dir, entries, err)
			}
		}
		for name := range tree(t, in) {
			if strings.Contains(name, ".ucloud-upload-") {
				t.Errorf("%q is left", name)
			}
		}
	})
}

// FuzzChunkedHeaders: what is accepted as a part lies inside of the file, and the first message of V1 means the same.
func FuzzChunkedHeaders(f *testing.F) {
	for _, s := range []string{"0", "1", "-1", "+1", "1e3", "0x1", " 1", "1 ", "", "9223372036854775807", "9223372036854775808", "00", "１"} {
		f.Add(s, "10")
		f.Add("0", s)
	}
	f.Fuzz(func(t *testing.T, offset, total string) {
		h := http.Header{headerOffset: {offset}, headerTotal: {total}}
		o, err1 := decimal(h, headerOffset)
		n, err2 := decimal(h, headerTotal)
		if err1 == nil && (o < 0 || strings.Trim(offset, "0123456789") != "") || err2 == nil && (n < 0 || strings.Trim(total, "0123456789") != "") {
			t.Fatalf("%q %q: %d %d", offset, total, o, n)
		}
		vo, vn, ok := parseV1(offset + " " + total)
		if want := err1 == nil && err2 == nil && o <= n; ok != want || ok && (vo != o || vn != n) {
			t.Fatalf("%q %q: %d %d %v, want %d %d %v", offset, total, vo, vn, ok, o, n, want)
		}
	})
}
