package transfers

import "math/rand/v2"

const playEnv = "TRANSFERS_TEST_DIR"

func play(string) {}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 99)) }
