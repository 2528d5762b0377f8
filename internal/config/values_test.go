package config

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"250ms": 250 * time.Millisecond, "30s": 30 * time.Second, "15m": 15 * time.Minute, "24h": 24 * time.Hour,
		"7d": 7 * 24 * time.Hour, "0": 0, "0s": 0,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "-5s", "+5s", "1.5h", "5 s", "1h30m", "5w", "s", "999999999999d", "５s", "1e3s"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func TestParseSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Size{
		"0": 0, "1B": 1, "64MiB": 64 << 20, "10GB": 10_000_000_000, "1KiB": 1024, "1kB": 1000, "1KB": 1000, "2 TiB": 2 << 40, "7EiB": 7 << 60,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "64", "-1B", "1.5GB", "1Gb", "1gib", "1G", "8EiB", "10EB", "99999999999999999999B", "B"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

// What is written is read again as the same value.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ms")) * time.Millisecond
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Fatalf("%v -> %q -> %v, %v", d, FormatDuration(d), got, err)
		}
		s := Size(rapid.Int64Range(0, 1<<59).Draw(t, "size"))
		if got, err := ParseSize(s.String()); err != nil || got != s {
			t.Fatalf("%d -> %q -> %v, %v", int64(s), s, got, err)
		}
		m := Money(rapid.Int64Range(1, 1<<50).Draw(t, "money"))
		if got, err := parseMoney(m.String()); err != nil || got != m {
			t.Fatalf("%d -> %q -> %v, %v", int64(m), m, got, err)
		}
		r := PortRange{1, 2}
		r.First = rapid.Uint16Range(1, 65535).Draw(t, "first")
		r.Last = rapid.Uint16Range(r.First, 65535).Draw(t, "last")
		if got, err := parsePortRange(r.String()); err != nil || got != r {
			t.Fatalf("%v: %v, %v", r, got, err)
		}
		mode := Mode(rapid.Uint32Range(0, 0o7777).Draw(t, "mode"))
		if got, err := parseMode(mode.String()); err != nil || got != mode {
			t.Fatalf("%v: %v, %v", mode, got, err)
		}
	})
}

func TestMoney(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Money{"1": 1e6, "0.000001": 1, "12.5": 12_500_000, "0.25": 250_000} {
		if got, err := parseMoney(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "0.0", "-1", "1.2345678", "1e3", ".5", "1,5", "9999999999999"} {
		if got, err := parseMoney(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://a.example.org": "https://a.example.org", "https://a.example.org/": "https://a.example.org",
		"http://127.0.0.1:8080": "http://127.0.0.1:8080", "http://a:80": "http://a", "https://[::1]:8443": "https://[::1]:8443",
		"https://a:443": "https://a",
	} {
		h, err := parseHostURL(text)
		if err != nil || h.URL() != want {
			t.Errorf("%q: %q, %v", text, h.URL(), err)
		}
	}
	for _, text := range []string{
		"", "a.example.org", "ftp://a", "https://", "https://a/b", "https://a?b", "https://a#b", "https://u@a", "https://a:0",
		"https://a:70000", "https://a b", "//a", "https://-a", "https://a..b", "HTTPS ://a",
	} {
		if h, err := parseHostURL(text); err == nil {
			t.Errorf("%q was read as %v", text, h)
		}
	}
	h := Host{Address: "::1", Port: 8443, Scheme: "https"}
	if h.HostPort() != "[::1]:8443" || h.WebSocketURL() != "wss://[::1]:8443" || !h.IsLoopback() || !h.TLS() {
		t.Errorf("%s %s", h.HostPort(), h.WebSocketURL())
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	for text, network := range map[string]string{
		"127.0.0.1:8889": "tcp4", "[::]:443": "tcp6", "0.0.0.0:1": "tcp4", "unix:/run/x.sock": "unix", "[::ffff:127.0.0.1]:5": "tcp4",
	} {
		l, err := parseListen(text)
		if err != nil || l.Network() != network {
			t.Errorf("%q: %s, %v", text, l.Network(), err)
		}
	}
	for _, text := range []string{"", "8889", ":8889", "localhost:8889", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "unix:x", "unix:/a/../b", "[fe80::1%eth0]:1"} {
		if l, err := parseListen(text); err == nil {
			t.Errorf("%q was read as %v", text, l)
		}
	}
	must := func(text string) Listen {
		l, err := parseListen(text)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "127.0.0.1:2", false},
		{"0.0.0.0:1", "127.0.0.1:1", true},
		{"[::]:1", "[::1]:1", true},
		{"[::]:1", "0.0.0.0:1", false},
		{"127.0.0.2:1", "127.0.0.1:1", false},
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "127.0.0.1:1", false},
	} {
		if got := must(tc.a).overlaps(must(tc.b)); got != tc.want {
			t.Errorf("%s and %s: %v", tc.a, tc.b, got)
		}
	}
}

func TestPattern(t *testing.T) {
	t.Parallel()
	values := map[string]string{"localUsername": "jo", "uid": "1000", "a": "#{uid}"}
	for text, want := range map[string]string{
		"/home/#{localUsername}":            "/home/jo",
		"#{localUsername}_#{localUsername}": "jo_jo",
		"##{localUsername}":                 "#{localUsername}",
		"a##{b}#{uid}":                      "a#{b}1000",
		"#{a}":                              "#{uid}", // one pass: a value is never expanded
		"plain # text {}":                   "plain # text {}",
		"":                                  "",
	} {
		p, err := parsePattern(text, nil)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got, err := p.Expand(values); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"#{", "/x/#{uid", "#{nope}", "#{}", "a\nb"} {
		if _, err := parsePattern(text, []string{"uid"}); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

// A value from outside cannot leave the place that the pattern gives it.
func TestPatternRefusesDangerousValues(t *testing.T) {
	t.Parallel()
	p := MustPattern("/projects/#{x}")
	for _, value := range []string{"", ".", "..", "../etc", "a/b", "/", "a..b", "a\x00b", "a\nb", "a\rb", "-rf"} {
		if got, err := p.Expand(map[string]string{"x": value}); err == nil {
			t.Errorf("value %q gave %q", value, got)
		}
	}
	if _, err := p.Expand(nil); err == nil {
		t.Error("a missing value was accepted")
	}
	home := MustPattern("#{home}/.ssh")
	if got, err := home.Expand(map[string]string{"home": "/home/jo"}); err != nil || got != "/home/jo/.ssh" {
		t.Errorf("home: %q, %v", got, err)
	}
	for _, value := range []string{"", "home/jo", "/home/../etc", "/home/jo/", "/home//jo"} {
		if got, err := home.Expand(map[string]string{"home": value}); err == nil {
			t.Errorf("home %q gave %q", value, got)
		}
	}
	title := MustPattern("Work (#{t})")
	if got, err := title.ExpandText(map[string]string{"t": "a/b\n-c"}); err != nil || got != "Work (a/b -c)" {
		t.Errorf("title: %q, %v", got, err)
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"/home/#{uid}", "##{", "#{", "###{uid}", "#{uid}#{uid}"} {
		f.Add(s, "value")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		p, err := parsePattern(text, nil)
		if err != nil {
			return
		}
		values := map[string]string{}
		for _, v := range p.Variables() {
			if v != "home" {
				values[v] = value
			}
		}
		out, err := p.Expand(values)
		if err == nil && len(p.Variables()) > 0 && strings.Count(out, "/") != strings.Count(strings.Join(literals(p), ""), "/") {
			t.Errorf("pattern %q with %q has another number of slashes: %q", text, value, out)
		}
	})
}

func literals(p Pattern) []string {
	var out []string
	for _, part := range p.parts {
		if !part.variable {
			out = append(out, part.text)
		}
	}
	return out
}

func TestSuggest(t *testing.T) {
	t.Parallel()
	names := []string{"maintenance", "branding", "hosts", "id", "core"}
	for word, want := range map[string]string{
		"maintenence": "maintenance", "Hosts": "hosts", "hsots": "hosts", "brand": "", "xyz": "", "corr": "core", "ID": "id",
	} {
		if got := suggest(word, names); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
