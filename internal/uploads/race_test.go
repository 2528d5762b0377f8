//go:build race

package uploads

// rounds makes long tests shorter: the race detector makes everything ten times as slow, and finds races in few rounds.
func rounds(full, race int) int { return race }
