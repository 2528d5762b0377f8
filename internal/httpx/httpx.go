// Package httpx reads and writes the JSON documents of HTTP calls from UCloud/Core: with a size limit on the way in,
// and with a complete, possibly compressed body on the way out.
//
// It is linked into every user instance and so imports nothing but the standard library and package failure. It trusts
// nothing it reads: a body is bounded before it is parsed, and what it says about a parse error never quotes the body.
package httpx

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"ucloud-im/internal/failure"
)

// MaxBody is the usual limit of a request body in bytes (contract 00 section 9.6).
const MaxBody = 1 << 20

// gzipMinBytes is the size from which compressing is worthwhile: smaller bodies fit in two or three TCP segments, and
// the work would cost more than it saves.
const gzipMinBytes = 2 << 10

// DecodeJSON reads the body of r into v. An empty body counts as {}, as Core and browsers send both (contract 00
// section 9.4). Members that v does not know are ignored, names match without regard to case, the content type does
// not matter.
//
// Errors carry a kind: TooLarge for more than limit bytes, Invalid for anything that is not one JSON document of the
// right shape.
func DecodeJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	if err := dec.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return decodeError(err)
	}
	// Anything behind the document is refused: two parsers might otherwise disagree about what was asked.
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("data behind the document")
		}
		return decodeError(err)
	}
	return nil
}

// ReadBody reads the body of r, at most limit bytes. Its errors are those of [DecodeJSON].
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	// What the client announces is believed up to a size that does no harm; more grows with what really comes.
	buf.Grow(int(min(max(r.ContentLength, 0), limit, believedBytes)) + bytes.MinRead)
	if _, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit)); err != nil {
		return nil, decodeError(err)
	}
	return buf.Bytes(), nil
}

// believedBytes is how much memory an announced length alone gets.
const believedBytes = 64 << 10

func decodeError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return failure.Wrap(err, failure.TooLarge, "The request is too large")
	}
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
		// Field is made of names of our own types only.
		return failure.Wrap(err, failure.Invalid, "The member %q of the request has the wrong type", te.Field)
	}
	return failure.Wrap(err, failure.Invalid, "The request is not a valid JSON document")
}

// WriteJSON answers with v as JSON, compressed if the client accepts it and the size makes it worthwhile. Nothing may
// have been written before. If v cannot be encoded the answer is an internal error.
func WriteJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		failure.WriteHTTP(w, failure.Wrap(err, failure.Internal, "An internal error occurred"))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	WriteBody(w, r, status, body)
}

// WriteBody answers with body under the headers that are set already, adding length and, where worthwhile, content
// encoding. Use it for compressible content only.
func WriteBody(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	h := w.Header()
	if len(body) >= gzipMinBytes {
		h.Add("Vary", "Accept-Encoding")
		if AcceptsGzip(r.Header) {
			h.Set("Content-Encoding", "gzip")
			body = compress(body)
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		// A failing write means that the client is gone; there is nobody left to tell.
		_, _ = w.Write(body)
	}
}

// writers holds compressors for reuse: each is several hundred kilobytes, which must not be allocated per request. The
// pool is emptied by the garbage collector, so an idle instance does not keep any.
var writers = sync.Pool{New: func() any {
	zw, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // cannot fail: the level is valid
	return zw
}}

func compress(body []byte) []byte {
	var buf bytes.Buffer
	buf.Grow(len(body) / 4)
	zw := writers.Get().(*gzip.Writer)
	defer writers.Put(zw)
	zw.Reset(&buf)
	_, _ = zw.Write(body) // a bytes.Buffer does not fail
	_ = zw.Close()
	return buf.Bytes()
}

// AcceptsGzip tells whether the client accepts gzip, by RFC 9110 section 12.5.3: an entry for gzip decides, else one
// for "*"; a weight of zero means no, and no entry means no.
func AcceptsGzip(h http.Header) bool {
	star := false
	for _, line := range h.Values("Accept-Encoding") {
		for entry := range strings.SplitSeq(line, ",") {
			coding, params, _ := strings.Cut(entry, ";")
			switch strings.ToLower(strings.TrimSpace(coding)) {
			case "gzip", "x-gzip":
				return weight(params) > 0
			case "*":
				star = weight(params) > 0
			}
		}
	}
	return star
}

// weight is the q parameter of an Accept-Encoding entry: 1 if absent, 0 if unreadable.
func weight(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, value, ok := strings.Cut(p, "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || !(q >= 0 && q <= 1) { // written so that NaN is refused
			return 0
		}
		return q
	}
	return 1
}
