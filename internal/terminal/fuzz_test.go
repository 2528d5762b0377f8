package terminal

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzFrames: what a holder, or whoever has taken its place, sends.
func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, kindData, []byte("out")), kindEnd, nil))
	f.Add(appendFrame(nil, kindResize, size{80, 24}.append(nil)))
	f.Add([]byte{kindData, 0xff, 0xff, 0xff, 0xff, 'x'})
	f.Add([]byte{kindState, 0, 0, 0, 9, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		buf := make([]byte, maxFrame)
		var again []byte
		for {
			kind, p, err := readFrame(in, buf)
			if err != nil {
				break
			}
			if len(p) > maxFrame {
				t.Fatalf("a payload of %d bytes", len(p))
			}
			again = appendFrame(again, kind, p)
			if z, err := parseSize(p); err == nil && (z.cols < 1 || z.cols > maxCells || z.rows < 1 || z.rows > maxCells) {
				t.Errorf("size %v", z)
			}
		}
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%q was read as %q", data, again)
		}
	})
}

// FuzzRequest: what a browser sends. Whatever id it gives to its stream, the answer is JSON with that id.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"call":"jobs.compute.x.shell.open","streamId":"0","payload":{"type":"initialize","sessionIdentifier":"abc","cols":80,"rows":24}}`))
	f.Add([]byte(`{"streamId":"\u0000\"","payload":{"type":"input","data":"\ud800"}}`))
	f.Add([]byte(`{"payload":{"type":"resize","cols":-1,"rows":1e9}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err != nil {
			return
		}
		if len(r.StreamID) > maxID || len(r.Payload.SessionIdentifier) > maxID {
			t.Errorf("ids of %d and %d bytes", len(r.StreamID), len(r.Payload.SessionIdentifier))
		}
		var answer struct {
			StreamID string `json:"streamId"`
		}
		reply := appendReply(nil, r.StreamID, typeInitialize, nil)
		if err := json.Unmarshal(reply, &answer); err != nil || answer.StreamID != r.StreamID {
			t.Errorf("%q for the stream %q: %v", reply, r.StreamID, err)
		}
	})
}
