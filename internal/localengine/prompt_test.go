package localengine

import (
	"testing"
	"time"

	"ucloud-im/internal/providerapi"
)

// A job that ends as soon as it is asked to is not waited for until the grace is over.
func TestEndsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	b.Engine.o.Grace = 5 * time.Minute // await waits for one
	s := b.spec("1", "sleep 1000")
	s.Limit = time.Second
	b.submit(s)
	b.await("1", providerapi.JobExpired)
}
