package intent

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// The bounds on what is remembered. An entry takes 200 bytes with everything, so a full memory takes 800 kB; it exists
// only while a user sends that many signed requests within the life of an intent.
const (
	maxEntries = 4096
	// maxRepeats is how often the same intent may come with the same request: Core tries six times (contract 00
	// section 4), and a client that asks for the same thing twice within a second makes the same intent of form 1.
	maxRepeats = 12
	// maxReads is with how many different requests an intent of form 1 may come that only reads, and readWindow how
	// long after the first. The client makes one and the same intent for all calls of a name in the same second, and
	// a page often lists several folders at once.
	maxReads   = 24
	readWindow = 5 * time.Second
)

// memory remembers the intents that were accepted, until they have expired.
type memory struct {
	mu      sync.Mutex
	entries map[[32]byte]*entry // by token.digest
	next    time.Time           // when to look for expired entries again
	// forgotten is the latest end of those that are not remembered any more. What ends no later counts as expired even
	// if it is not any more by the clock or by a new leeway: it may be one of them.
	forgotten time.Time
}

// entry is an intent with the requests for which it was used.
type entry struct {
	exp      time.Time
	first    time.Time
	keyID    string
	requests []use
}

// use is one request with the number of times that it came.
type use struct {
	request [32]byte
	count   int
}

// usage is what an intent is to be used for.
type usage struct {
	request [32]byte
	reads   bool // the intent may be shared by several requests
	keyID   string
	exp     time.Time // the claim
}

// use decides whether the intent may be used for the request, and remembers that it was.
func (m *memory) use(digest [32]byte, u usage, now time.Time, leeway time.Duration) Reason {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked(now, leeway)
	e := m.entries[digest]
	if e == nil {
		if !u.exp.After(m.forgotten) {
			return Expired
		}
		if len(m.entries) >= maxEntries {
			return Busy
		}
		if m.entries == nil {
			m.entries = map[[32]byte]*entry{}
		}
		m.entries[digest] = &entry{exp: u.exp, first: now, keyID: u.keyID, requests: []use{{u.request, 1}}}
		return OK
	}
	for i := range e.requests {
		if r := &e.requests[i]; r.request == u.request {
			if r.count >= maxRepeats {
				return Replayed
			}
			r.count++
			return OK
		}
	}
	if !u.reads || len(e.requests) >= maxReads || now.Sub(e.first) > readWindow || now.Before(e.first) {
		return Replayed
	}
	e.requests = append(e.requests, use{u.request, 1})
	return OK
}

// verifiedBy gives the key that has verified the intent, "" if none has.
func (m *memory) verifiedBy(digest [32]byte) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[digest]; e != nil {
		return e.keyID
	}
	return ""
}

// expireLocked forgets what has expired, looking at most once a second. Nothing ticks: the memory of an instance that
// gets no requests stays as it is.
func (m *memory) expireLocked(now time.Time, leeway time.Duration) {
	if now.Before(m.next) && m.next.Sub(now) <= time.Second {
		return
	}
	m.next = now.Add(time.Second)
	for digest, e := range m.entries {
		if now.After(e.exp.Add(leeway)) {
			delete(m.entries, digest)
			if e.exp.After(m.forgotten) {
				m.forgotten = e.exp
			}
		}
	}
	if len(m.entries) == 0 {
		m.entries = nil // a map does not give room back
	}
}

// requestDigest identifies a request: what it goes to, and its body.
func requestDigest(r Request) [32]byte {
	h := sha256.New()
	for _, part := range []string{r.Target, r.FrameCall} {
		var size [4]byte
		binary.BigEndian.PutUint32(size[:], uint32(len(part)))
		h.Write(size[:])      //nolint:errcheck // hash.Hash documents that it never fails
		h.Write([]byte(part)) //nolint:errcheck // as above
	}
	h.Write(r.Body) //nolint:errcheck // as above
	return [32]byte(h.Sum(nil))
}

// readOnly tells whether a call changes nothing. What is not named here changes something. Links for downloads are not
// named either: whoever has one reads the file.
func readOnly(call string) bool {
	switch call {
	case "files.browse", "files.retrieve", "files.search", "files.streamingSearch", "files.collections.browse",
		"files.collections.retrieve", "jobs.browse", "jobs.retrieve", "jobs.follow", "jobs.requestDynamicParameters":
		return true
	}
	return false
}
