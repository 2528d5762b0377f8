package transfers

import (
	"fmt"
	"time"
)

// amount is a number of bytes for people.
func amount(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB", "PB"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.2f %s", v, unit)
}

func files(n int64) string { return plural(n, "file") }

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// shorten cuts a text that is longer than most characters.
func shorten(text string, most int) string {
	runes := []rune(text)
	if len(runes) > most {
		runes = append(runes[:most-1], '…')
	}
	return string(runes)
}

// meter measures how fast something goes, over the last seconds.
type meter struct {
	at           time.Time
	bytes, files int64
	rateB, rateF float64
}

// meterSpan is over which time a rate is taken.
const meterSpan = 2 * time.Second

// rate tells the rates at a moment, from amounts that only grow. Smaller ones begin anew.
func (m *meter) rate(now time.Time, bytes, files int64) (perSecond, filesPerSecond float64) {
	if m.at.IsZero() || bytes < m.bytes || files < m.files {
		m.at, m.bytes, m.files = now, bytes, files
		return m.rateB, m.rateF
	}
	if d := now.Sub(m.at); d >= meterSpan {
		m.rateB, m.rateF = float64(bytes-m.bytes)/d.Seconds(), float64(files-m.files)/d.Seconds()
		m.at, m.bytes, m.files = now, bytes, files
	}
	return m.rateB, m.rateF
}
