package downloads

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"ucloud-im/internal/browserlink"
	"ucloud-im/internal/drives"
	"ucloud-im/internal/fileserver"
)

// opened is what a download is about: a file or a folder.
type opened struct {
	root *drives.Root
	file *os.File
	dir  *drives.Dir
}

func (o *opened) close() {
	if o.file != nil {
		o.file.Close() //nolint:errcheck // only read
	}
	if o.dir != nil {
		o.dir.Close()
	}
	o.root.Close() //nolint:errcheck // a descriptor without content
}

// open opens the file or folder beneath its drive.
func (s *Service) open(ctx context.Context, st *state, ref drives.Ref, p drives.Path) (*opened, error) {
	o, err := browserlink.Do(ctx, s.gate, func() (*opened, error) {
		root, err := ref.Open()
		if err != nil {
			return nil, err
		}
		o := &opened{root: root}
		local, err := root.At(p)
		if err == nil {
			o.file, _, err = local.OpenRegular()
		}
		if errors.Is(err, drives.ErrNotRegular) {
			if dir, dirErr := local.OpenDir(); dirErr == nil {
				o.dir, err = dir, nil
				if st.NoDirectories {
					err = errMissing(unix.EISDIR, "Folders cannot be downloaded")
				}
			} else if !errors.Is(dirErr, unix.ENOTDIR) {
				err = dirErr
			}
		}
		if err != nil {
			o.close()
			return nil, err
		}
		return o, nil
	}, (*opened).close)
	return o, refuse(err)
}

// safeHeaders make sure that what is sent cannot do anything in the name of this site, and that the secret in its
// address gets no further (contract 11 section 5.2).
func safeHeaders(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Cache-Control", "private, no-store")
	h.Set("Referrer-Policy", "no-referrer")
}

// sendFile sends a file or parts of it.
func (s *Service) sendFile(w http.ResponseWriter, c *fileserver.Call, st *state, o *opened, name string) error {
	info, err := o.file.Stat()
	if err != nil {
		return fmt.Errorf("stat file: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Content-Disposition", disposition(name))
	h.Set("ETag", etag(info))
	// Both ways hand the file to the connection as it is, so that the kernel sends it (sendfile(2)).
	if st.NoRanges {
		h.Set("Accept-Ranges", "none")
		h.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
		h.Set("Content-Length", strconv.FormatInt(info.Size(), 10))
		if c.Method != http.MethodHead {
			_, err = io.CopyN(w, o.file, info.Size())
		}
	} else {
		http.ServeContent(w, c.Request, "", info.ModTime(), o.file)
	}
	if c.Method == http.MethodHead {
		return nil
	}
	if err != nil {
		c.Log().Debug("a download was broken off", "error", err)
		panic(http.ErrAbortHandler)
	}
	if now, err := o.file.Stat(); err != nil || now.Size() < info.Size() {
		// Less was sent than announced. The server closes such a connection, which is what tells the browser.
		c.Log().Warn("a file became shorter while it was sent")
	}
	return nil
}

// etag identifies the content as well as its attributes can. The numbers are hashed because they are nobody's business.
func etag(info os.FileInfo) string {
	var b [32]byte
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		binary.BigEndian.PutUint64(b[:], st.Dev)
		binary.BigEndian.PutUint64(b[8:], st.Ino)
	}
	binary.BigEndian.PutUint64(b[16:], uint64(info.Size()))               //nolint:gosec // never negative
	binary.BigEndian.PutUint64(b[24:], uint64(info.ModTime().UnixNano())) //nolint:gosec // any bits will do
	sum := sha256.Sum256(b[:])
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// harmless are the types that browsers may be told about, because they show them without running anything. Everything
// else is opaque; in particular HTML, SVG and XML, which can hold scripts.
var harmless = map[string]string{
	".txt": text, ".log": text, ".csv": text, ".tsv": text, ".md": text, ".out": text, ".err": text,
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
	".bmp": "image/bmp", ".avif": "image/avif", ".ico": "image/x-icon", ".tif": "image/tiff", ".tiff": "image/tiff",
	".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".oga": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav",
	".flac": "audio/flac", ".m4a": "audio/mp4", ".aac": "audio/aac",
	".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg", ".mov": "video/quicktime",
	".mkv": "video/x-matroska", ".avi": "video/x-msvideo",
	".pdf": "application/pdf",
}

const text = "text/plain; charset=utf-8"

func contentType(name string) string {
	if t, ok := harmless[strings.ToLower(path.Ext(name))]; ok {
		return t
	}
	return "application/octet-stream"
}

// disposition is the header that makes a browser save the content under its name (RFC 6266 section 4): in a form for all
// browsers, with what is not plain replaced, and in one that has every character (RFC 8187).
func disposition(name string) string {
	name = cleanName(name)
	var plain, full strings.Builder
	for _, r := range name {
		if r < ' ' || r > '~' || strings.ContainsRune(`"\%;`, r) {
			r = '_'
		}
		plain.WriteRune(r)
	}
	for i := range len(name) {
		b := name[i]
		if 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("!#$&+-.^_`|~", b) >= 0 {
			full.WriteByte(b)
		} else {
			fmt.Fprintf(&full, "%%%02X", b)
		}
	}
	return `attachment; filename="` + plain.String() + `"; filename*=UTF-8''` + full.String()
}

// cleanName removes what must not be in the name of a saved file: control characters, which could end a header, and
// those that change the direction of writing, which make "exe.txt" out of "txt.exe".
func cleanName(name string) string {
	if !utf8.ValidString(name) {
		name = drives.Escape(name)
	}
	name = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return -1
		}
		return r
	}, name)
	if strings.Trim(name, ". ") == "" {
		return "download"
	}
	return name
}
