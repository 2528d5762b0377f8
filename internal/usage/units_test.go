package usage

import (
	"math"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func TestUnits(t *testing.T) {
	t.Parallel()
	const eib = 1 << 60
	for _, tc := range []struct{ n, unit, want int64 }{
		{0, 1e9, 0}, {1, 1e9, 1}, {1e9, 1e9, 1}, {1e9 + 1, 1e9, 2}, {math.MaxInt64, 1, math.MaxInt64}, {math.MaxInt64, eib, 8}, {eib, eib, 1},
	} {
		if got, err := Units(tc.n, tc.unit); err != nil || got != tc.want {
			t.Errorf("%d bytes in units of %d: %d, %v", tc.n, tc.unit, got, err)
		}
	}
	for _, bad := range [][2]int64{{-1, 1}, {1, 0}, {1, -5}} {
		if _, err := Units(bad[0], bad[1]); err == nil {
			t.Errorf("%v was converted", bad)
		}
		if _, _, err := Bytes(bad[0], bad[1]); err == nil {
			t.Errorf("%v was converted", bad)
		}
	}
}

// TestBytes compares with arithmetic that cannot overflow.
func TestBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		units := rapid.Int64Range(0, math.MaxInt64).Draw(t, "units")
		unit := rapid.SampledFrom([]int64{1, 1e9, 1e12, 1e15, 1e18, 1 << 30, 1 << 40, 1 << 50, 1 << 60}).Draw(t, "unit")
		got, exact, err := Bytes(units, unit)
		if err != nil {
			t.Fatal(err)
		}
		true_ := new(big.Int).Mul(big.NewInt(units), big.NewInt(unit))
		if exact != true_.IsInt64() || (exact && got != true_.Int64()) || (!exact && got != math.MaxInt64) {
			t.Fatalf("%d x %d = %d, %v", units, unit, got, exact)
		}
		if exact {
			if back, err := Units(got, unit); err != nil || back != units {
				t.Fatalf("%d back to %d, %v", got, back, err)
			}
		}
	})
}
