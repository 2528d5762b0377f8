package config

import "testing"

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if c, problems := Load("testdata/examples/birch", Options{Role: RoleServer, Getenv: noEnv}); c == nil {
			b.Fatal(problems.Err())
		}
	}
}
