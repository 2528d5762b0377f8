package devcore

import (
	"encoding/binary"
	"encoding/json"
	"errors"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Opcodes of the event stream (contract 31 section 3).
const (
	opAuth       = 0
	opWallet     = 1
	opProject    = 2
	opCategory   = 3
	opUser       = 4
	opReplayUser = 5
)

const (
	flagIncludeRetired = 1 // of the auth record

	walletLocked  = 1
	walletProject = 2
)

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// appendUser encodes record 4.
func appendUser(b []byte, ref uint32, name ident.UCloudUser) []byte {
	b = binary.BigEndian.AppendUint32(append(b, opUser), ref)
	return appendString(b, string(name))
}

// appendProject encodes record 2.
func appendProject(b []byte, ref uint32, p providerapi.Project) []byte {
	doc, err := json.Marshal(p)
	if err != nil {
		panic("devcore: marshal a project: " + err.Error()) // plain data, cannot fail
	}
	b = binary.BigEndian.AppendUint32(append(b, opProject), ref)
	b = binary.BigEndian.AppendUint64(b, uint64(p.ModifiedAt))
	return appendString(b, string(doc))
}

// appendCategory encodes record 3.
func appendCategory(b []byte, ref uint32, c providerapi.ProductCategory) []byte {
	doc, err := json.Marshal(c)
	if err != nil {
		panic("devcore: marshal a category: " + err.Error()) // plain data, cannot fail
	}
	b = binary.BigEndian.AppendUint32(append(b, opCategory), ref)
	return appendString(b, string(doc))
}

// appendWallet encodes record 1; eight more bytes when the session asked for retired usage.
func appendWallet(b []byte, workspace, category uint32, w wallet, isProject, includeRetired bool) []byte {
	b = binary.BigEndian.AppendUint32(append(b, opWallet), workspace)
	b = binary.BigEndian.AppendUint32(b, category)
	b = binary.BigEndian.AppendUint64(b, uint64(w.quota))
	b = binary.BigEndian.AppendUint64(b, uint64(w.usage))
	var flags uint32
	if w.locked {
		flags |= walletLocked
	}
	if isProject {
		flags |= walletProject
	}
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(w.updated.UnixMilli()))
	if includeRetired {
		b = binary.BigEndian.AppendUint64(b, 0)
	}
	return b
}

// authRecord is the first record of a session.
type authRecord struct {
	replayFrom int64 // Unix ms
	flags      uint64
	token      string
}

var errRecord = errors.New("malformed record")

// parseAuth decodes record 0. Core reads exactly one record per message of the provider.
func parseAuth(m []byte) (authRecord, error) {
	if len(m) < 21 || m[0] != opAuth {
		return authRecord{}, errRecord
	}
	n := binary.BigEndian.Uint32(m[17:])
	if uint64(len(m)) != 21+uint64(n) {
		return authRecord{}, errRecord
	}
	return authRecord{
		replayFrom: int64(binary.BigEndian.Uint64(m[1:])), flags: binary.BigEndian.Uint64(m[9:]), token: string(m[21:]),
	}, nil
}

// parseReplayUser decodes record 5.
func parseReplayUser(m []byte) (ident.UCloudUser, error) {
	if len(m) < 5 || m[0] != opReplayUser || uint64(len(m)) != 5+uint64(binary.BigEndian.Uint32(m[1:])) {
		return "", errRecord
	}
	return ident.UCloudUser(m[5:]), nil
}
