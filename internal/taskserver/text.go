package taskserver

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// maxLine is the longest text about a task in characters (contract 14). In bytes it stays below Core's 1024.
const maxLine = 200

// maxBody is the longest body in bytes: it names what has failed. Core takes 1024.
const maxBody = 1000

// body is line for the body of a task, which may be longer.
func body(s string) string {
	if s = clean(s); len(s) <= maxBody {
		return s
	}
	s = s[:maxBody]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// line makes a text from an instance fit for Core and for people: valid UTF-8, one line, without control characters, not
// too long. File names stand in it, so nothing else is changed.
func line(s string) string {
	s = clean(s)
	if utf8.RuneCountInString(s) > maxLine {
		s = strings.TrimSpace(string([]rune(s)[:maxLine-1])) + "…"
	}
	return s
}

func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r // an invalid byte arrives here as U+FFFD
	}, s)
	return strings.TrimSpace(s)
}

// word tells whether s consists of letters of the given kind only.
func word(s string, most int, ok func(rune) bool) bool {
	return s != "" && len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0
}

func kindRune(r rune) bool { return r >= 'a' && r <= 'z' || r == '_' }

func iconRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// coreStates are our states in Core's words.
var coreStates = map[store.TaskState]providerapi.TaskState{
	store.TaskQueued: providerapi.TaskInQueue, store.TaskRunning: providerapi.TaskRunning, store.TaskSuspended: providerapi.TaskSuspended,
	store.TaskCancelled: providerapi.TaskCancelled, store.TaskFailed: providerapi.TaskFailure, store.TaskSucceeded: providerapi.TaskSuccess,
}

// status is a task as Core shows it. All fields are set, because Core erases what is left out.
func status(row store.Task) providerapi.TaskStatus {
	text := row.Text
	switch row.State {
	case store.TaskRunning:
		switch row.Wanted {
		case store.TaskCancelled:
			text = "Cancelling"
		case store.TaskSuspended:
			text = "Pausing"
		}
	case store.TaskQueued:
		if text == "" && row.Attempt == 0 {
			text = "Waiting for its turn"
		} else if text == "" {
			text = "Waiting to continue"
		}
	case store.TaskSuspended:
		text = "Paused"
	}
	return providerapi.TaskStatus{
		State: coreStates[row.State], Title: &row.Title, Body: &row.Body, Progress: &text,
		Percentage: providerapi.TaskPercentage(row.Percent),
	}
}

// retryText tells the user what the task waits for.
func retryText(pause time.Duration, why string) string {
	return line(fmt.Sprintf("Retrying in %d seconds: %s", int(pause.Seconds()), why))
}
