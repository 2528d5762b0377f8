package integration

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

var testVars = map[string]string{
	"ucloudUsername": `**[x](https://evil.example)** <i>&`, "ticket": "K7QF-2M9X", "contact": "help@hpc.example.org",
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, in, want string }{
		{"paragraphs", "a\nb\n\nc", "<p>a\nb</p>\n<p>c</p>\n"},
		{"heading", "# One\n## Two\ntext", "<h2>One</h2>\n<h3>Two</h3>\n<p>text</p>\n"},
		{"list", "- a\n- b\n  more", "<ul>\n<li>a</li>\n<li>b more</li>\n</ul>\n"},
		{"numbers", "1. a\n2. b", "<ol>\n<li>a</li>\n<li>b</li>\n</ol>\n"},
		{"code", "```\na <b>\n  c\n```\nd", "<pre tabindex=\"0\"><code>a &lt;b&gt;\n  c</code></pre>\n<p>d</p>\n"},
		{"unclosed code", "```\na", "<pre tabindex=\"0\"><code>a</code></pre>\n"},
		{"inline", "a `b` **c** d", "<p>a <code>b</code> <strong>c</strong> d</p>\n"},
		{"link", "[us](https://hpc.example.org/?a=1&b=2)", "<p><a href=\"https://hpc.example.org/?a=1&amp;b=2\">us</a></p>\n"},
		{"mail", "[us](mailto:#{contact})", "<p><a href=\"mailto:help@hpc.example.org\">us</a></p>\n"},
		{"script link", "[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"},
		{"data link", "[x](data:text/html,x)", "<p>[x](data:text/html,x)</p>\n"},
		{"relative link", "[x](/etc)", "<p>[x](/etc)</p>\n"},
		{"html", "<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"},
		{"variable", "`#{ticket}` #{other}", "<p><code>K7QF-2M9X</code> #{other}</p>\n"},
		{"variable with marks", "#{ucloudUsername}", "<p>**[x](https://evil.example)** &lt;i&gt;&amp;</p>\n"},
		{
			"variable in a link", "[x](https://h.example/?u=#{ucloudUsername})",
			"<p><a href=\"https://h.example/?u=%2A%2A%5Bx%5D%28https%3A%2F%2Fevil.example%29%2A%2A%20%3Ci%3E%26\">x</a></p>\n",
		},
		{"variable as host", "[x](https://#{ucloudUsername}/)", "<p>[x](https://**[x](https://evil.example)** &lt;i&gt;&amp;/)</p>\n"},
		{"empty", "", ""},
	} {
		if got := string(renderMarkdown(parseMarkdown(tc.in), testVars)); got != tc.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tc.name, got, tc.want)
		}
	}
}

// FuzzMarkdown checks that whatever stands in the file, the result holds the few elements we make and nothing else.
func FuzzMarkdown(f *testing.F) {
	for _, s := range []string{"# a\n\n- b\n\n```\nc", "[a](https://b)", "**`[x](mailto:y)`**", "<script>", "#{ticket}", "1. a\n b\n- c", "[](x)", "`"} {
		f.Add(s)
	}
	allowed := map[string]bool{"p": true, "h2": true, "h3": true, "h4": true, "ul": true, "ol": true, "li": true, "pre": true, "code": true, "strong": true, "a": true, "x": true}
	f.Fuzz(func(t *testing.T, in string) {
		html := string(renderMarkdown(parseMarkdown(in), testVars))
		dec := xml.NewDecoder(strings.NewReader("<x>" + strings.ToValidUTF8(strings.Map(xmlRune, html), "?") + "</x>"))
		for {
			tok, err := dec.Token()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("%q gave HTML that does not parse: %v\n%s", in, err, html)
			}
			el, ok := tok.(xml.StartElement)
			if !ok {
				continue
			}
			if !allowed[el.Name.Local] {
				t.Fatalf("%q gave <%s>", in, el.Name.Local)
			}
			for _, a := range el.Attr {
				safe := a.Name.Local == "tabindex" || a.Name.Local == "href" &&
					(strings.HasPrefix(a.Value, "https:") || strings.HasPrefix(a.Value, "http:") || strings.HasPrefix(a.Value, "mailto:"))
				if !safe {
					t.Fatalf("%q gave %s=%q", in, a.Name.Local, a.Value)
				}
			}
		}
	})
}

// xmlRune replaces what XML cannot hold and HTML can.
func xmlRune(r rune) rune {
	if r < 0x20 && r != '\t' && r != '\n' || r == 0xfffe || r == 0xffff {
		return '?'
	}
	return r
}
