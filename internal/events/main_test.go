package events

import (
	"encoding/binary"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Opcodes of what Core sends, written out so that the tests do not depend on the decoder.
const (
	opAuth     = 0
	opWallet   = 1
	opProject  = 2
	opCategory = 3
	opUser     = 4

	walletLocked    = 1
	walletIsProject = 2
)

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
