// Package vnckit is as much of a VNC viewer as tests need: it logs in and looks at the desktop's name and size.
package vnckit

import (
	"bytes"
	"crypto/cipher"
	"crypto/des"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strings"
)

// newCipher: passwords of VNC are DES keys whose bits stand the other way round (RFC 6143 section 7.2.2).
func newCipher(key []byte) cipher.Block {
	var k [8]byte
	for i := range min(len(key), 8) {
		k[i] = bits.Reverse8(key[i])
	}
	c, err := des.NewCipher(k[:])
	if err != nil {
		panic(err)
	}
	return c
}

// Obfuscated is the form of a password in a file for VNC servers: encrypted with a key that everybody knows.
func Obfuscated(password string) []byte {
	var plain, out [8]byte
	copy(plain[:], password)
	newCipher([]byte{23, 82, 107, 6, 35, 78, 88, 7}).Encrypt(out[:], plain[:])
	return out[:]
}

// Login logs in as viewers do (RFC 6143 section 7) and gives the name and size of the desktop.
func Login(conn net.Conn, password string) (name string, width, height int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = v.(error)
		}
	}()
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	read := func(n int) []byte {
		b := make([]byte, n)
		_, err := io.ReadFull(conn, b)
		must(err)
		return b
	}
	write := func(b []byte) {
		_, err := conn.Write(b)
		must(err)
	}
	if v := string(read(12)); !strings.HasPrefix(v, "RFB 003.") {
		return "", 0, 0, fmt.Errorf("version %q", v)
	}
	write([]byte("RFB 003.008\n"))
	types := read(int(read(1)[0]))
	if !bytes.Contains(types, []byte{2}) {
		return "", 0, 0, fmt.Errorf("security types %v", types)
	}
	write([]byte{2})
	challenge := read(16)
	c := newCipher([]byte(password))
	c.Encrypt(challenge[:8], challenge[:8])
	c.Encrypt(challenge[8:], challenge[8:])
	write(challenge)
	if result := binary.BigEndian.Uint32(read(4)); result != 0 {
		return "", 0, 0, fmt.Errorf("refused with %d", result)
	}
	write([]byte{1}) // shared
	head := read(24)
	return string(read(int(binary.BigEndian.Uint32(head[20:])))), int(binary.BigEndian.Uint16(head)), int(binary.BigEndian.Uint16(head[2:])), nil
}
