package intent

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"testing"
)

// FuzzToken: what is taken for an intent has one text, and is taken apart in the way that it is signed.
func FuzzToken(f *testing.F) {
	for _, v := range readVectors(f).Vectors {
		f.Add(v.Token)
	}
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	f.Add("..")
	f.Add(part(`{"typ":"JWT","alg":"none"}`) + "." + part(`{"iat":1,"exp":2,"call":"a","username":"","project":null}`) + ".")
	f.Add(part(`{"typ":"JWT","alg":"RS256","alg":"RS256"}`) + "." + part(`{"iat":1e3,"exp":2}`) + ".AA")
	f.Add(part(`{"typ":"ucloud-intent+jwt","alg":"EdDSA"}`) + "." + part(`{"iat":1,"exp":2,"call":"\ud800","username":{},"project":[]}`) + ".AA")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := parse(text)
		if err != nil {
			return
		}
		if got := tok.signed + "." + base64.RawURLEncoding.EncodeToString(tok.signature); got != text {
			t.Fatalf("%q is read as %q", text, got)
		}
		if !tok.claims.Exp.After(tok.claims.Iat) || tok.form == "" || tok.claims.Iat.Unix() < 0 {
			t.Fatalf("%q: %+v", text, tok)
		}
	})
}

// FuzzCanonical: the canonical form of a document is JSON with the same content, and its own canonical form.
func FuzzCanonical(f *testing.F) {
	for _, v := range readVectors(f).Vectors {
		f.Add([]byte(v.Received))
	}
	for _, s := range []string{
		`{"a":[1,1.5,-0,1e21,1e-7,9007199254740991],"\u0000":"\ud83d\ude00\ud800"}`, `[[[[]]]]`, `"\u2028"`, `{"a":1,"a":2}`, `{"resolvedX":{"a":[{}]},"parameters":{"resolvedX":1}}`, `1`, ` `,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		tree, err := readTree(body, nil)
		if err != nil {
			return
		}
		once, err := appendCanonical(nil, tree)
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("%q becomes %q", body, once)
		}
		again, err := readTree(once, nil)
		if err != nil {
			t.Fatalf("%q becomes %q: %v", body, once, err)
		}
		if twice, err := appendCanonical(nil, again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q becomes %q, and that %q: %v", body, once, twice, err)
		}
	})
}

// FuzzReduction: no body that comes from Core makes the digest or the search for owners fall over, and what was reduced
// cannot be reduced any more.
func FuzzReduction(f *testing.F) {
	calls := []string{
		"files.browse", "files.retrieve", "files.streamingSearch", "jobs.follow", "jobs.requestDynamicParameters", "jobs.terminate",
		"jobs.suspend", "jobs.extend", "files.transfer", "files.collections.delete", "files.collections.updateAcl", "jobs.create", "files.move", "",
	}
	for _, x := range recorded(f) {
		for i, call := range calls {
			if call == x.Call {
				f.Add(byte(i), []byte(x.Received))
			}
		}
	}
	f.Add(byte(11), []byte(`{"items":[{"specification":{"parameters":{"ucMetricSampleRate":1}}},null,7]}`))
	f.Add(byte(7), []byte(`{"items":[{"job":{"id":{"id":[]}},"Job":1}],"Items":[]}`))
	f.Add(byte(12), []byte(`[[],{"k":0,"K":0},{"\u212a":1,"k":1}]`))
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		call := calls[int(which)%len(calls)]
		tree, err := readTree(body, map[string]bool{"resolvedCollection": true})
		if err != nil {
			return
		}
		checkOwners([]string{"items[].resolvedCollection", "job?", ""}, tree, "")
		undone, err := undo(call, tree)
		if err != nil {
			return
		}
		once, err := canonicalOf(call, undone)
		if err != nil {
			return
		}
		again, err := readTree(once, nil)
		if err != nil {
			t.Fatalf("%s: %q: %v", call, once, err)
		}
		reduced, err := reduce(again, false)
		if err != nil {
			t.Fatalf("%s: %q: %v", call, once, err)
		}
		if reduced == nil {
			reduced = object{}
		}
		if twice, err := appendCanonical(nil, reduced); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s: %q, and reduced again %q: %v", call, once, twice, err)
		}
	})
}
