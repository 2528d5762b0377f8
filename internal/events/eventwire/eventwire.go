// Package eventwire reads and makes the records of the event stream between UCloud/Core and a provider (contract 31
// sections 2 and 3). It is pure: bytes in, values out. An attacker who controls the bytes can make it return an error
// and nothing else; every length is checked against the rest of the message before it is used (FuzzDecode).
package eventwire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Opcodes (contract 31 section 3). All integers are big-endian, strings have a u32 length in front.
const (
	opAuth       = 0 // to Core
	opWallet     = 1
	opProject    = 2
	opCategory   = 3
	opUser       = 4
	opReplayUser = 5 // to Core
)

// FlagIncludeRetired in the auth record makes wallet records eight bytes longer.
const FlagIncludeRetired uint64 = 1

// Flags of a wallet record.
const (
	walletLocked    = 1 << 0
	walletIsProject = 1 << 1
)

// ErrProtocol is the root of all errors about bytes that are not as the contract has them.
var ErrProtocol = errors.New("event stream protocol")

// Record is one of Wallet, Project, Category and User.
type Record interface{ record() }

// Wallet is a snapshot of a wallet. Its references are valid within the session only.
type Wallet struct {
	Workspace     uint32 // reference to a project if IsProject, else to a user
	Category      uint32 // reference
	CombinedQuota int64  // in the category's unit
	TotalUsage    int64
	Locked        bool
	IsProject     bool
	LastUpdate    providerapi.Millis
	RetiredUsage  int64 // 0 where the session did not ask for it
}

// Project is a snapshot of a project, and defines a reference.
type Project struct {
	Ref        uint32
	ModifiedAt providerapi.Millis
	Project    providerapi.Project
}

// Category defines a reference to a category.
type Category struct {
	Ref      uint32
	Category providerapi.ProductCategory
}

// User defines a reference to a user. The name is as sent; it may be one that we cannot use.
type User struct {
	Ref      uint32
	Username string
}

func (Wallet) record()   {}
func (Project) record()  {}
func (Category) record() {}
func (User) record()     {}

// AppendAuth makes the first record of a session. from is in Unix milliseconds, 0 for everything.
func AppendAuth(b []byte, from int64, flags uint64, token string) []byte {
	b = append(b, opAuth)
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	b = binary.BigEndian.AppendUint64(b, flags)
	return appendString(b, token)
}

// AppendReplayUser makes the record that asks for everything about one user.
func AppendReplayUser(b []byte, u ident.UCloudUser) []byte {
	return appendString(append(b, opReplayUser), string(u))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// Decode reads the records of one message. retired tells whether the session asked for wallet records with retired
// usage. There is no length in front of a record, so an unknown opcode makes the rest unreadable: an error.
func Decode(message []byte, retired bool) ([]Record, error) {
	if len(message) == 0 {
		return nil, fmt.Errorf("%w: empty message", ErrProtocol)
	}
	var records []Record
	r := reader{rest: message}
	for len(r.rest) > 0 {
		rec, err := r.next(retired)
		if err != nil {
			return nil, fmt.Errorf("%w: record %d at byte %d: %w", ErrProtocol, len(records)+1, len(message)-len(r.rest), err)
		}
		records = append(records, rec)
	}
	return records, nil
}

// reader reads values from the front of rest. After the first value that is not there, err is set and all further
// values are zero.
type reader struct {
	rest []byte
	err  error
}

var errShort = errors.New("ends too early")

func (r *reader) next(retired bool) (Record, error) {
	var out Record
	var doc error
	switch op := r.u8(); op {
	case opWallet:
		w := Wallet{
			Workspace:     r.u32(),
			Category:      r.u32(),
			CombinedQuota: int64(r.u64()),
			TotalUsage:    int64(r.u64()),
		}
		flags := r.u32() // unknown bits are left alone
		w.Locked, w.IsProject = flags&walletLocked != 0, flags&walletIsProject != 0
		w.LastUpdate = providerapi.Millis(r.u64())
		if retired {
			w.RetiredUsage = int64(r.u64())
		}
		out = w
	case opProject:
		p := Project{Ref: r.u32(), ModifiedAt: providerapi.Millis(r.u64())}
		doc = r.json(&p.Project)
		out = p
	case opCategory:
		c := Category{Ref: r.u32()}
		doc = r.json(&c.Category)
		out = c
	case opUser:
		out = User{Ref: r.u32(), Username: string(r.text())}
	default:
		return nil, fmt.Errorf("unknown opcode %d", op)
	}
	if r.err != nil {
		return nil, r.err
	}
	if doc != nil {
		return nil, fmt.Errorf("document: %w", doc)
	}
	return out, nil
}

func (r *reader) take(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.rest)) {
		r.err = errShort
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text reads a string. The result is part of the message, nothing is allocated for a length that is not there.
func (r *reader) text() []byte {
	b := r.take(uint64(r.u32()))
	if r.err == nil && !utf8.Valid(b) {
		r.err = errors.New("a string is not valid UTF-8")
	}
	return b
}

func (r *reader) json(v any) error {
	b := r.text()
	if r.err != nil {
		return nil
	}
	return json.Unmarshal(b, v)
}
