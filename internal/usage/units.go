package usage

import (
	"fmt"
	"math"
	"math/bits"
)

// Bytes converts an amount in a unit of unitBytes bytes. What does not fit into 63 bits becomes the largest number, which
// is 8 EiB and more than any file system takes as a quota: exact is false then. Negative amounts and units are an error.
func Bytes(units, unitBytes int64) (n int64, exact bool, err error) {
	if units < 0 || unitBytes <= 0 {
		return 0, false, fmt.Errorf("%d units of %d bytes make no size", units, unitBytes)
	}
	hi, lo := bits.Mul64(uint64(units), uint64(unitBytes))
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64, false, nil
	}
	return int64(lo), true, nil
}

// Units converts bytes, rounded up: storage that is used at all counts (contract 30 section 8). Negative sizes and units
// are an error.
func Units(n, unitBytes int64) (int64, error) {
	if n < 0 || unitBytes <= 0 {
		return 0, fmt.Errorf("%d bytes in units of %d bytes make no amount", n, unitBytes)
	}
	units := n / unitBytes
	if n%unitBytes != 0 {
		units++ // cannot overflow: n was not a multiple of 1
	}
	return units, nil
}

// add adds two sizes that are not negative; what does not fit becomes the largest number.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
