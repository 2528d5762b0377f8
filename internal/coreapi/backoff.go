package coreapi

import (
	"math/rand/v2"
	"time"
)

// Backoff is exponential back-off with jitter, as configured under provider.core.retry.
type Backoff struct {
	Initial time.Duration // first delay; 0 means 1 s
	Max     time.Duration // upper bound of a delay; 0 means 60 s
}

// Delay is how long to wait after the given number of failures in a row, 1 being the first. The result lies between
// half of the doubled-up delay and the whole, so that many providers do not come back in the same moment.
func (b Backoff) Delay(failures int) time.Duration {
	initial, limit := b.Initial, b.Max
	if initial <= 0 {
		initial = time.Second
	}
	if limit <= 0 {
		limit = time.Minute
	}
	d := initial
	for i := 1; i < failures && d < limit; i++ {
		d *= 2
	}
	d = min(d, limit)
	return d/2 + rand.N(d/2+1)
}
