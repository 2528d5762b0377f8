package providerapi

import (
	"encoding/json"
	"math"
	"testing"

	"ucloud-im/internal/providerapi/apischema"
)

func TestTaskRoundTrip(t *testing.T) {
	t.Parallel()
	p, c := apischema.Provider(t), apischema.Core(t)
	core := func(name string) example { return readExample(t, "core/"+name+".json") }
	checkRequest := func(d *apischema.Document, id string) func([]byte) error {
		return func(b []byte) error { return d.CheckRequest(id, b) }
	}
	t.Run("create", roundTrip[CreateTask](core("tasks.create").Request, checkRequest(c, "tasks.create")))
	t.Run("created", roundTrip[Task](core("tasks.create").Response, func(b []byte) error { return c.CheckResponse("tasks.create", b) }))
	t.Run("post status", roundTrip[PostTaskStatus](core("tasks.postStatus").Request, checkRequest(c, "tasks.postStatus")))
	t.Run("pause or cancel", roundTrip[PauseOrCancelTask](readExample(t, "provider/tasks.pauseOrCancel.json").Request,
		checkRequest(p, "tasks.pauseOrCancel")))
}

// A percentage that is no number could not be encoded, and the post would be lost.
func TestTaskPercentage(t *testing.T) {
	t.Parallel()
	for in, want := range map[float64]string{
		0: "0", 35.5: "35.5", 100: "100", 100.1: "100", -3: "-1", math.Inf(1): "100", math.Inf(-1): "-1", math.NaN(): "-1",
	} {
		if out, err := json.Marshal(TaskPercentage(in)); err != nil || string(out) != want {
			t.Errorf("%v: %s, %v", in, out, err)
		}
	}
}
