package uploads

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"ucloud-im/internal/uploads/client"
)

// zeros is a file of a size without a disk behind it.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.left))
	clear(p[:n])
	z.left -= int64(n)
	return n, nil
}

func (z *zeros) Close() error { return nil }

func sourceOf(path string, size int64) *uploadclient.File {
	return &uploadclient.File{
		Path: path, Size: size, Modified: time.UnixMilli(someTime),
		Open: func() (io.ReadCloser, error) { return &zeros{size}, nil },
	}
}

func seqOf(files ...*uploadclient.File) iter.Seq2[*uploadclient.File, error] {
	return func(yield func(*uploadclient.File, error) bool) {
		for _, f := range files {
			if !yield(f, nil) {
				return
			}
		}
	}
}

func send(tb testing.TB, s UploadSession, o uploadclient.Options, files iter.Seq2[*uploadclient.File, error]) uploadclient.Result {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 5*time.Minute)
	defer cancel()
	c, err := uploadclient.Dial(ctx, s.Endpoint, o)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	res, err := c.Send(ctx, files)
	if err != nil {
		tb.Fatalf("%v (%+v)", err, res)
	}
	return res
}

// rawDial connects without a WebSocket library.
func rawDial(tb testing.TB, s UploadSession) net.Conn {
	tb.Helper()
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		tb.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", u.RequestURI(), u.Host)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil) // nothing follows until something is sent
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		tb.Fatal(res, err)
	}
	return conn
}

// rawSend uploads one file as cheaply as a client can: the frames are ready before, with a mask of zeros. Browsers send
// such frames of 16,000,000 bytes.
func rawSend(tb testing.TB, s UploadSession, path string, size int64) {
	tb.Helper()
	conn := rawDial(tb, s)
	defer conn.Close()
	in := bufio.NewReader(conn)
	frame := func(payload []byte) []byte { // RFC 6455 section 5.2: final, binary, masked
		head := binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, uint64(len(payload)))
		return append(append(head, 0, 0, 0, 0), payload...)
	}
	answer := func() (payload []byte) {
		head := make([]byte, 2)
		if _, err := io.ReadFull(in, head); err != nil {
			tb.Fatal(err)
		}
		payload = make([]byte, head[1])
		if _, err := io.ReadFull(in, payload); err != nil {
			tb.Fatal(err)
		}
		return payload
	}
	const piece = 16_000_000
	full := frame(chunk(0, string(make([]byte, piece))))
	conn.Write(frame(listing(listed{0, size, someTime, path})))
	if got := answer(); !bytes.Equal(got, num(opOK, 0)) {
		tb.Fatalf("answer %v", got)
	}
	for ; size >= piece; size -= piece {
		if _, err := conn.Write(full); err != nil {
			tb.Fatal(err)
		}
	}
	conn.Write(frame(chunk(0, string(make([]byte, size)))))
	if got := answer(); !bytes.Equal(got, num(opCompleted, 1)) {
		tb.Fatalf("answer %v", got)
	}
}

// plainCopy writes a file as cp does, with the same flushing.
func plainCopy(tb testing.TB, path string, size int64, sync bool, buf []byte) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{&zeros{size}}, buf); err != nil {
		tb.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkOneStream uploads one large file and compares with a plain copy of the same size in the same run. The client
// runs on the same machine, so two cores do the work of client and server.
func BenchmarkOneStream(b *testing.B) {
	const size = 1 << 30
	for _, sync := range []bool{false, true} {
		b.Run("sync="+strconv.FormatBool(sync), func(b *testing.B) {
			dir := b.TempDir()
			w := newWorld(b, dir, func(o *Options) { o.Settings.NoSync = !sync })
			var plain, ours time.Duration
			buf := make([]byte, 256<<10)
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				began := time.Now()
				plainCopy(b, filepath.Join(dir, "plain"), size, sync, buf)
				plain += time.Since(began)
				os.Remove(filepath.Join(dir, "plain"))
				os.Remove(filepath.Join(dir, "ours"))
				b.StartTimer()
				began = time.Now()
				rawSend(b, w.session("", folder, rename), "ours", size)
				ours += time.Since(began)
			}
			b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-plain-copy")
			b.ReportMetric(float64(b.N)*size/1e6/plain.Seconds(), "plain-MB/s")
		})
	}
}

// BenchmarkSmallFiles uploads small files and compares with a loop that writes them.
func BenchmarkSmallFiles(b *testing.B) {
	const n, size = 20_000, 1000
	for _, sync := range []bool{false, true} {
		b.Run("sync="+strconv.FormatBool(sync), func(b *testing.B) {
			n := n
			if sync {
				n /= 10
			}
			dir := b.TempDir()
			w := newWorld(b, dir, func(o *Options) { o.Settings.NoSync = !sync })
			var plain, ours time.Duration
			buf := make([]byte, 256<<10)
			round := 0
			for b.Loop() {
				round++
				b.StopTimer()
				p := filepath.Join(dir, fmt.Sprint("plain", round))
				os.Mkdir(p, 0o777)
				began := time.Now()
				for i := range n {
					plainCopy(b, filepath.Join(p, strconv.Itoa(i)), size, sync, buf)
				}
				plain += time.Since(began)
				b.StartTimer()
				began = time.Now()
				send(b, w.session(fmt.Sprint("/ours", round), folder, rename), uploadclient.Options{}, func(yield func(*uploadclient.File, error) bool) {
					for i := range n {
						if !yield(sourceOf(fmt.Sprintf("d%d/%d", i/1000, i), size), nil) {
							return
						}
					}
				})
				ours += time.Since(began)
			}
			b.ReportMetric(float64(n*round)/ours.Seconds(), "files/s")
			b.ReportMetric(float64(n*round)/plain.Seconds(), "plain-files/s")
			b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-plain-loop")
		})
	}
}
