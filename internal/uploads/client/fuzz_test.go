package uploadclient

import (
	"context"
	"errors"
	"testing"
)

// FuzzAnswers: whatever a destination sends, the source keeps count: nothing is wanted that was not listed, nothing twice,
// no more is completed than was listed, and what makes no sense is an error.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{}, uint8(3))
	f.Add(answerBytes(opOK, 1), uint8(3))
	f.Add(append(answerBytes(opOK, 0), answerBytes(opCompleted, 1)...), uint8(3))
	f.Add(append(answerBytes(opSkip, 2), answerBytes(opSkip, 2)...), uint8(3))
	f.Add([]byte{opOK, 0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, msg []byte, listed uint8) {
		events := map[*File]map[Event]int{}
		n := int32(-1)
		c := &Conn{
			o: Options{NextID: func() int32 { n++; return n }, Event: func(f *File, e Event) {
				if events[f] == nil {
					events[f] = map[Event]int{}
				}
				events[f][e]++
			}},
			want: make(chan *File, 255), change: make(chan struct{}, 1), files: map[int32]*state{}, ids: map[*File]int32{},
		}
		c.ctx, c.cancel = context.WithCancelCause(context.Background())
		defer c.cancel(nil)
		for range listed {
			c.list(nil, &File{Path: "x", Size: 1})
		}
		err := c.answers(msg)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%v", err)
		}
		r := c.Result()
		if r.Completed < 0 || r.Completed > int64(listed) || r.Skipped > int64(listed) || len(c.want) > int(listed) {
			t.Errorf("%+v of %d, %d wanted", r, listed, len(c.want))
		}
		for _, e := range events {
			if e[Wanted] > 1 || e[Skipped] > 1 {
				t.Errorf("%v", e)
			}
		}
		if err == nil && len(msg)%5 != 0 {
			t.Error("half an answer was taken")
		}
	})
}
