package ipc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// byteReader gives bytes as a connection would, at most chunk at a time, without descriptors.
type byteReader struct {
	b     []byte
	chunk int
	flags int

	largest int // buffer that was offered
}

func (r *byteReader) ReadMsgUnix(b, _ []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	r.largest = max(r.largest, len(b))
	if len(r.b) == 0 {
		return 0, 0, 0, nil, io.EOF
	}
	n = copy(b[:min(len(b), max(r.chunk, 1))], r.b)
	r.b = r.b[n:]
	return n, 0, r.flags, nil, nil
}

func head(length uint32, version, typ, files, name byte, id uint32) [headerSize]byte {
	var b [headerSize]byte
	binary.BigEndian.PutUint32(b[0:], length)
	b[4], b[5], b[6], b[7] = version, typ, files, name
	binary.BigEndian.PutUint32(b[8:], id)
	return b
}

func TestParseHeader(t *testing.T) {
	t.Parallel()
	in, out := direction{limit: 1000}, direction{fromServer: true, limit: 1000}
	for _, tc := range []struct {
		name string
		dir  direction
		b    [headerSize]byte
		want header // zero: refused
	}{
		{"call", in, head(100, 1, 1, 0, 9, 7), header{length: 100, typ: frameCall, nameLen: 9, id: 7}},
		{"open with descriptors", in, head(1000, 1, 2, 4, 128, 1<<32-1), header{length: 1000, typ: frameOpen, files: 4, nameLen: 128, id: 1<<32 - 1}},
		{"cancel", in, head(0, 1, 3, 0, 0, 7), header{typ: frameCancel, id: 7}},
		{"credit", in, head(4, 1, 4, 0, 0, 7), header{length: 4, typ: frameCredit, id: 7}},
		{"result", out, head(3, 1, 16, 0, 0, 7), header{length: 3, typ: frameResult, id: 7}},
		{"failure", out, head(3, 1, 17, 0, 0, 7), header{length: 3, typ: frameFailure, id: 7}},
		{"item with descriptor", out, head(3, 1, 18, 1, 0, 7), header{length: 3, typ: frameItem, files: 1, id: 7}},
		{"end", out, head(0, 1, 19, 0, 0, 7), header{typ: frameEnd, id: 7}},

		{"other version", in, head(100, 2, 1, 0, 9, 7), header{}},
		{"version 0", in, head(100, 0, 1, 0, 9, 7), header{}},
		{"too long", in, head(1001, 1, 1, 0, 9, 7), header{}},
		{"as long as can be", in, head(1<<32-1, 1, 1, 0, 9, 7), header{}},
		{"type 0", in, head(0, 1, 0, 0, 0, 7), header{}},
		{"unknown type", in, head(0, 1, 200, 0, 0, 7), header{}},
		{"id 0", in, head(100, 1, 1, 0, 9, 0), header{}},
		{"no name", in, head(100, 1, 1, 0, 0, 7), header{}},
		{"name longer than payload", in, head(8, 1, 1, 0, 9, 7), header{}},
		{"name too long", in, head(1000, 1, 1, 0, 129, 7), header{}},
		{"five descriptors", in, head(100, 1, 1, 5, 9, 7), header{}},
		{"cancel with payload", in, head(1, 1, 3, 0, 0, 7), header{}},
		{"cancel with name", in, head(1, 1, 3, 0, 1, 7), header{}},
		{"cancel with descriptor", in, head(0, 1, 3, 1, 0, 7), header{}},
		{"short credit", in, head(3, 1, 4, 0, 0, 7), header{}},
		{"credit with descriptor", in, head(4, 1, 4, 1, 0, 7), header{}},
		{"result from a client", in, head(3, 1, 16, 0, 0, 7), header{}},
		{"item from a client", in, head(3, 1, 18, 0, 0, 7), header{}},
		{"call from a server", out, head(100, 1, 1, 0, 9, 7), header{}},
		{"credit from a server", out, head(4, 1, 4, 0, 0, 7), header{}},
		{"result with descriptor", out, head(3, 1, 16, 1, 0, 7), header{}},
		{"end with payload", out, head(3, 1, 19, 0, 0, 7), header{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := tc.dir.parseHeader(tc.b)
			if tc.want == (header{}) {
				if !errors.Is(err, errProtocol) {
					t.Fatalf("got %+v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(header{})); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	for _, chunk := range []int{1, 5, 1 << 20} {
		frame, err := encodeFrame(header{typ: frameCall, id: 3}, "a.b", text{strings.Repeat("ü<", 5000)}, maxRequest)
		if err != nil {
			t.Fatal(err)
		}
		r := frameReader{src: &byteReader{b: frame, chunk: chunk}, dir: direction{limit: maxRequest}}
		h, err := r.header(func() {})
		if err != nil {
			t.Fatal(err)
		}
		payload, err := r.payload(h)
		if err != nil || string(payload[:h.nameLen]) != "a.b" || !bytes.Equal(payload, frame[headerSize:]) {
			t.Fatalf("got %d bytes, %v", len(payload), err)
		}
		if _, err := r.header(func() {}); !errors.Is(err, io.EOF) {
			t.Fatalf("after the last frame: %v", err)
		}
	}
}

func TestCutFrames(t *testing.T) {
	t.Parallel()
	frame, err := encodeFrame(header{typ: frameCall, id: 3}, "a.b", text{"hello"}, maxRequest)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(frame); n++ {
		r := frameReader{src: &byteReader{b: frame[:n], chunk: 100}, dir: direction{limit: maxRequest}}
		h, err := r.header(func() {})
		if err == nil {
			_, err = r.payload(h)
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

func TestEncodeLimit(t *testing.T) {
	t.Parallel()
	if _, err := encodeFrame(header{typ: frameCall, id: 3}, "a.b", text{strings.Repeat("x", 200)}, 100); !errors.Is(err, errTooLong) {
		t.Fatalf("got %v", err)
	}
	if _, err := encodeFrame(header{typ: frameResult, id: 3}, "", func() {}, 100); err == nil {
		t.Fatal("a function was encoded")
	}
}

func TestTruncatedControlData(t *testing.T) {
	t.Parallel()
	frame := head(0, 1, 3, 0, 0, 7)
	r := frameReader{src: &byteReader{b: frame[:], chunk: 100, flags: unix.MSG_CTRUNC}, dir: direction{limit: 10}}
	if _, err := r.header(func() {}); !errors.Is(err, errProtocol) {
		t.Fatalf("got %v", err)
	}
}

// TestMemoryFollowsBytes: who declares a large payload and sends little does not make us reserve much.
//
//attack:actor local user
//attack:does Announces a frame of the largest size on many connections and sends nothing more.
//attack:control Memory for a frame grows with the bytes that have arrived.
//attack:remove internal/ipc/frame.go: buf := make([]byte, 0, min(h.length, firstRead)) => buf := make([]byte, 0, h.length)
func TestMemoryFollowsBytes(t *testing.T) {
	t.Parallel()
	src := &byteReader{b: make([]byte, 10_000), chunk: 1 << 20}
	r := frameReader{src: src, dir: direction{limit: 100 << 20}}
	h := header{length: 100 << 20, typ: frameCall, nameLen: 1, id: 1}
	if _, err := r.payload(h); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if src.largest > 20_000 {
		t.Fatalf("a buffer of %d bytes for 10,000 that came", src.largest)
	}
}

func FuzzFrameReader(f *testing.F) {
	call, err := encodeFrame(header{typ: frameCall, id: 3}, "a.b", text{"hello"}, maxRequest)
	if err != nil {
		f.Fatal(err)
	}
	cancel := head(0, 1, 3, 0, 0, 7)
	f.Add(call, false, 5)
	f.Add(append(bytes.Clone(call), cancel[:]...), false, 1000)
	f.Add(call[:20], true, 1)
	f.Add([]byte{0, 0, 0, 2, 1, 18, 0, 0, 0, 0, 0, 1, '{', '}'}, true, 3)
	f.Fuzz(func(t *testing.T, b []byte, fromServer bool, chunk int) {
		const limit = 1 << 16
		r := frameReader{src: &byteReader{b: b, chunk: chunk}, dir: direction{fromServer: fromServer, limit: limit}}
		total := 0
		for {
			h, err := r.header(func() {})
			if err != nil {
				return
			}
			if h.length > limit || h.id == 0 || h.nameLen > h.length || h.files != 0 {
				t.Fatalf("header %+v passed", h)
			}
			payload, err := r.payload(h)
			if err != nil {
				return
			}
			if len(payload) != h.length {
				t.Fatalf("payload of %d bytes for %+v", len(payload), h)
			}
			if total += headerSize + len(payload); total > len(b) {
				t.Fatalf("%d bytes came out of %d", total, len(b))
			}
		}
	})
}
