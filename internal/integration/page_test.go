package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap/ticket"
)

// fixed is a ticket that is the same in every run.
func fixed(t *testing.T) ticket.Ticket {
	t.Helper()
	for _, last := range "0123456789ABCDEFGHJKMNPQRSTVWXYZ" {
		if tk, err := ticket.Parse("K7QF-2M9X-BDRA-4HTC-8WPY-E3NZ-6VG" + string(last)); err == nil {
			return tk
		}
	}
	t.Fatal("no check symbol fits")
	return ticket.Ticket{}
}

// fixedKey is a fingerprint that looks the same in HTML and in addresses.
const fixedKey = "SHA256:vHo2mTSmHkNbKq5cWgcXW8SUvH7Jc3G2hVQz1h7wZbM"

// pages renders every page there is, without a store.
func pages(t *testing.T) map[string]string {
	t.Helper()
	tk := fixed(t)
	open := ticket.View{
		Stage: ticket.StageOpen, User: `Zoë <b>"O'Neil"</b>#1`, Ticket: tk, ExpiresAt: time.Date(2031, 2, 17, 9, 0, 0, 0, time.UTC),
	}
	self := PageOptions{Title: "Example HPC", Contact: "support@hpc.example.org", SelfService: true}
	withKey := open
	withKey.Key.Fingerprint = fixedKey
	custom := self
	custom.Instructions = "# Please\n\nMail [us](mailto:#{contact}) the ticket `#{ticket}` of **#{ucloudUsername}**.\n\n" +
		"1. First\n2. Second,\n   wrapped\n\n- a\n- b\n\n```\nucloud connect #{ticket}\n```\n"
	out := make(map[string]string)
	for name, tc := range map[string]struct {
		o PageOptions
		v ticket.View
	}{
		"open":          {self, open},
		"open-operator": {PageOptions{Contact: "https://hpc.example.org/help"}, open},
		"open-bare":     {PageOptions{}, open},
		"open-key":      {self, withKey},
		"open-custom":   {custom, open},
		"connecting":    {self, ticket.View{Stage: ticket.StageConnecting, User: open.User, Ticket: tk, LocalName: "zoe"}},
		"connected":     {self, ticket.View{Stage: ticket.StageConnected, User: open.User, Ticket: tk, LocalName: "zoe"}},
		"rejected":      {self, ticket.View{Stage: ticket.StageRejected, User: open.User, Ticket: tk, Message: "Use <another> account"}},
	} {
		p, err := newPage(tc.o, "https://ucloud.example.org")
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		kind, c := p.content(tc.v)
		if err := p.write(rec, httptest.NewRequest("GET", "/", nil), 200, kind, c); err != nil {
			t.Fatal(err)
		}
		out[name] = rec.Body.String()
		if name == "open" {
			rec = httptest.NewRecorder()
			_ = p.write(rec, httptest.NewRequest("GET", "/", nil), 404, "gone", content{Heading: "Ticket not found"})
			out["gone"] = rec.Body.String()
			rec = httptest.NewRecorder()
			_ = p.write(rec, httptest.NewRequest("GET", "/", nil), 503, "failed", content{Heading: "Please try again"})
			out["failed"] = rec.Body.String()
		}
	}
	return out
}

// TestKeyTakesAnotherPath: the page shows the key to the person, and neither the mail that it has ready nor the command for the
// operator names it: an operator who got it from there would compare our word with itself (decision 14).
//
//attack:actor compromised core
//attack:does Uploads a key of its own and has the user mail the operators everything that they need to confirm it.
//attack:control The mail and the command of the ticket's page do not have the key.
//attack:remove internal/integration/page.html: --key KEY => --key {{.Fingerprint}}
func TestKeyTakesAnotherPath(t *testing.T) {
	t.Parallel()
	_, hash, _ := strings.Cut(fixedKey, ":")
	if html := pages(t)["open-key"]; strings.Count(html, hash) != 1 || !strings.Contains(html, "<pre tabindex=\"0\">"+fixedKey+"</pre>") {
		t.Errorf("the key stands at other places than one:\n%s", html)
	}
}

func TestPagesAreGolden(t *testing.T) {
	t.Parallel()
	for name, html := range pages(t) {
		testkit.Golden(t, "page-"+name+".html", []byte(html))
	}
}

//attack:actor malicious identity
//attack:does Has a name with markup, which the page shows.
//attack:control Pages are templates that escape.
//attack:remove internal/integration/page.go: _, _ = w.Write(buf.Bytes()) => _, _ = w.Write([]byte(strings.NewReplacer("&lt;", "<", "&gt;", ">").Replace(buf.String())))
func TestPagesEscape(t *testing.T) {
	t.Parallel()
	for name, html := range pages(t) {
		if strings.Contains(html, "<b>") || strings.Contains(html, "<another>") {
			t.Errorf("%s: a name became markup:\n%s", name, html)
		}
		if strings.Contains(name, "open") && !strings.Contains(html, "Zoë &lt;b&gt;") {
			t.Errorf("%s does not name the user", name)
		}
	}
}

func TestPagesShowTheExactCommands(t *testing.T) {
	t.Parallel()
	tk := fixed(t).String()
	all := pages(t)
	for name, commands := range map[string][]string{
		"open":          {"<code>ucloud connect " + tk + "</code>", "<code>ucloud connect " + tk + " LOCALUSER</code>"},
		"open-operator": {"<code>ucloud connect " + tk + " LOCALUSER</code>"},
		"open-custom":   {"<code>ucloud connect " + tk + "</code>"},
	} {
		for _, c := range commands {
			if !strings.Contains(all[name], c) {
				t.Errorf("%s does not show %s", name, c)
			}
		}
	}
	if strings.Contains(all["open-operator"], "with SSH") {
		t.Error("self-service is offered although it is off")
	}
}

// TestPagesAreAccessible checks what can be checked without a browser (WCAG 2.2).
func TestPagesAreAccessible(t *testing.T) {
	t.Parallel()
	for name, html := range pages(t) {
		d := parse(t, name, html)
		if d.lang != "en" {
			t.Errorf("%s: language %q (3.1.1)", name, d.lang)
		}
		if d.title == "" || d.count["main"] != 1 || d.count["h1"] != 1 || !d.viewport {
			t.Errorf("%s: title %q, %d main, %d h1, viewport %v", name, d.title, d.count["main"], d.count["h1"], d.viewport)
		}
		for i, level := range d.headings {
			if i == 0 && level != 1 || i > 0 && level > d.headings[i-1]+1 {
				t.Errorf("%s: heading levels %v jump (1.3.1)", name, d.headings)
			}
		}
		for _, l := range d.links {
			if l.text == "" || l.href == "" {
				t.Errorf("%s: a link without text or target %+v (2.4.4)", name, l)
			}
		}
		for _, tag := range []string{"script", "img", "iframe", "object", "form", "input", "link", "svg"} {
			if d.count[tag] != 0 {
				t.Errorf("%s has a <%s>", name, tag)
			}
		}
		if d.handlers != "" {
			t.Errorf("%s has the attribute %s", name, d.handlers)
		}
		if !strings.Contains(html, `href="https://ucloud.example.org"`) {
			t.Errorf("%s does not lead back to UCloud", name)
		}
		if waiting := strings.HasPrefix(name, "open") || name == "connecting"; d.refresh != waiting {
			t.Errorf("%s: refreshes itself: %v", name, d.refresh)
		}
	}
}

type link struct{ href, text string }

type parsed struct {
	lang, title, handlers string
	viewport, refresh     bool
	count                 map[string]int
	headings              []int
	links                 []link
}

// parse reads a page as XML, which the templates are on purpose: it also proves that every element is closed.
func parse(t *testing.T, name, html string) parsed {
	t.Helper()
	d := parsed{count: make(map[string]int)}
	dec := xml.NewDecoder(strings.NewReader(strings.TrimPrefix(html, "<!DOCTYPE html>")))
	var text strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return d
		}
		if err != nil {
			t.Fatalf("%s is not well-formed: %v\n%s", name, err, html)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			text.Reset()
			d.count[tok.Name.Local]++
			attr := make(map[string]string)
			for _, a := range tok.Attr {
				attr[a.Name.Local] = a.Value
				if strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "style" {
					d.handlers = a.Name.Local
				}
			}
			switch tag := tok.Name.Local; tag {
			case "html":
				d.lang = attr["lang"]
			case "meta":
				d.viewport = d.viewport || attr["name"] == "viewport"
				d.refresh = d.refresh || attr["http-equiv"] == "refresh"
			case "h1", "h2", "h3", "h4":
				d.headings = append(d.headings, int(tag[1]-'0'))
			case "a":
				d.links = append(d.links, link{href: attr["href"]})
			}
		case xml.CharData:
			text.Write(tok)
		case xml.EndElement:
			switch tok.Name.Local {
			case "title":
				d.title = text.String()
			case "a":
				d.links[len(d.links)-1].text = strings.TrimSpace(text.String())
			}
		}
	}
}

// TestContrast computes the contrast of every text colour on every background, in both modes. 7:1 is WCAG's level AAA.
func TestContrast(t *testing.T) {
	t.Parallel()
	schemes := regexp.MustCompile(`:root\{([^}]*)\}`).FindAllStringSubmatch(pageCSS, -1)
	if len(schemes) != 2 {
		t.Fatalf("%d colour schemes", len(schemes))
	}
	for i, s := range schemes {
		colours := make(map[string]float64)
		for _, m := range regexp.MustCompile(`--([a-z]+):#([0-9a-f]{6})`).FindAllStringSubmatch(s[1], -1) {
			colours[m[1]] = luminance(t, m[2])
		}
		for _, fg := range []string{"fg", "soft", "link", "good"} {
			for _, bg := range []string{"card", "bg", "code"} {
				a, b := colours[fg], colours[bg]
				if a == 0 || b == 0 {
					t.Fatalf("scheme %d has no %s or %s", i, fg, bg)
				}
				if ratio := (max(a, b) + 0.05) / (min(a, b) + 0.05); ratio < 4.5 || fg == "fg" && ratio < 7 {
					t.Errorf("scheme %d: %s on %s has %.1f:1", i, fg, bg, ratio)
				}
			}
		}
	}
}

// luminance is the relative luminance of a colour (WCAG 2.2).
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(hex, 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	channel := func(shift uint) float64 {
		c := float64(n>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
}

//attack:actor internet
//attack:does Puts the page with the ticket into a frame, or reads its address from a Referer.
//attack:control Pages with secrets are not framed, cached, or named to other sites.
//attack:remove internal/integration/page.go: h.Set("Referrer-Policy", "no-referrer") // the ticket is in the URL =>
//attack:actor internet
//attack:does Runs a script in the page with the ticket.
//attack:control The page allows nothing but its own style, by a content security policy.
//attack:remove internal/integration/page.go: csp := "default-src 'none'; style-src => csp := "style-src
func TestPageHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, path := w.begin(t, alice)
	for name, want := range map[string]int{path: 200, base + "/integration/instructions?ticket=unknown": 404, base + "/integration/instructions": 404} {
		rec := w.call("GET", name, "", "Authorization", "") // a browser: no token
		if rec.Code != want {
			t.Fatalf("%s: %d", name, rec.Code)
		}
		for key, value := range map[string]string{
			"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
		} {
			if got := rec.Header().Get(key); got != value {
				t.Errorf("%s: %s is %q", name, key, got)
			}
		}
		csp := rec.Header().Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("%s: the policy lacks %s: %s", name, part, csp)
			}
		}
		// The policy's hash must be that of the style as it was sent, or the page has none.
		style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(rec.Body.String())
		if style == nil {
			t.Fatalf("%s has no style", name)
		}
		sum := sha256.Sum256([]byte(style[1]))
		if hash := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; !strings.Contains(csp, hash) {
			t.Errorf("%s: the policy %q does not allow the style %s", name, csp, hash)
		}
	}
}

func TestPageFollowsTheTicket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tk, path := w.begin(t, alice)
	get := func() (int, string) {
		rec := w.call("GET", path, "", "Authorization", "")
		return rec.Code, rec.Body.String()
	}
	if code, html := get(); code != 200 || !strings.Contains(html, tk.String()) || !strings.Contains(html, string(alice)) {
		t.Fatalf("open: %d\n%s", code, html)
	}
	w.complete(t, tk, alice)
	if code, html := get(); code != 200 || !strings.Contains(html, "Connecting") || strings.Contains(html, tk.String()) {
		t.Fatalf("connecting: %d\n%s", code, html)
	}
	w.deliver(t)
	if code, html := get(); code != 200 || !strings.Contains(html, "✓ Connected") || !strings.Contains(html, "<strong>alice</strong>") {
		t.Fatalf("connected: %d\n%s", code, html)
	}
	_, older := w.begin(t, "Mary#1")
	time.Sleep(2 * time.Millisecond) // tickets are ordered by milliseconds
	w.begin(t, "Mary#1")
	if rec := w.call("GET", older, ""); rec.Code != 404 {
		t.Fatalf("superseded: %d", rec.Code)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if code, html := get(); code != http.StatusServiceUnavailable || strings.Contains(html, "database") {
		t.Fatalf("without a database: %d\n%s", code, html)
	}
}
