package integration

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page's template and style
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/usermap/ticket"
)

// How often a page looks whether the ticket has been completed; without a script there is no other way to notice. Open
// pages leave time to select and copy the command, as a reload undoes a selection.
const (
	refreshOpen       = 10
	refreshConnecting = 3
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// PageOptions configure the page of a ticket.
type PageOptions struct {
	Title       string // name of the provider for people; empty: "this provider"
	Contact     string // mail address or http(s) URL of the operators
	SelfService bool   // users can complete their own ticket
	// Instructions replaces the built-in text on what to do. It is Markdown of a small kind, see renderMarkdown, with
	// the variables #{ucloudUsername}, #{ticket} and #{contact}. The ticket, the user and the key are shown in any case.
	Instructions string
}

// page renders the pages of tickets. It is immutable.
type page struct {
	o      PageOptions
	ucloud string
	tmpl   *template.Template
	custom []block
	csp    string
}

func newPage(o PageOptions, ucloudPublic string) (*page, error) {
	if o.Title == "" {
		o.Title = "this provider"
	}
	if u, err := url.Parse(ucloudPublic); err != nil || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("the address of UCloud %q is not an absolute http(s) URL", ucloudPublic)
	}
	tmpl, err := template.New("page").Parse(pageHTML + loginHTML)
	if err != nil {
		return nil, fmt.Errorf("page template: %w", err)
	}
	// The style is the only thing the page may use, and the policy names it by its hash: whatever else got into the
	// page would not run, load, submit or be framed (W3C CSP 3).
	sum := sha256.Sum256([]byte(pageCSS))
	csp := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; " +
		"base-uri 'none'; frame-ancestors 'none'; form-action "
	p := &page{o: o, ucloud: ucloudPublic, tmpl: tmpl, csp: csp}
	if o.Instructions != "" {
		p.custom = parseMarkdown(o.Instructions)
	}
	return p, nil
}

// content is what the templates use. Values are escaped by html/template for where they stand.
type content struct {
	Heading, Title, UCloud    string
	Style                     template.CSS
	Refresh                   int
	User, Ticket, Expires     string
	LocalName, Message        string
	Form, Action              string // of the question for consent
	Fingerprint               string // of the signing key that came with the connection
	KeyWithdrawn              bool
	SelfService               bool
	Assigned                  bool // the provider has found the account, and nobody has logged in
	Contact, Mail, ContactURL string
	Custom                    template.HTML
}

// instructions serves the page of a ticket. The ticket in the URL is the whole proof; a request needs nothing else and
// whatever else it carries is ignored.
func (h *Handler) instructions(w http.ResponseWriter, r *http.Request) error {
	if h.o.Tickets == nil {
		return failure.New(failure.NotFound, "There is no such call")
	}
	v, err := h.o.Tickets.View(r.Context(), r.URL.Query().Get("ticket"))
	switch {
	case failure.Is(err, failure.NotFound):
		return h.page.write(w, r, http.StatusNotFound, "gone", content{Heading: "Ticket not found"})
	case err != nil:
		h.log.Error("show a ticket", "request", observability.RequestID(r.Context()), "error", err)
		return h.page.write(w, r, http.StatusServiceUnavailable, "failed", content{Heading: "Please try again"})
	}
	name, c := h.page.content(v)
	return h.page.write(w, r, http.StatusOK, name, c)
}

// content chooses the template for a stage and fills it.
func (p *page) content(v ticket.View) (name string, c content) {
	c = content{User: string(v.User), LocalName: v.LocalName, Message: v.Message}
	switch v.Stage {
	case ticket.StageConnecting:
		c.Heading, c.Refresh = "Connecting …", refreshConnecting
		return "connecting", c
	case ticket.StageConnected:
		c.Heading = "Connected"
		return "connected", c
	case ticket.StageRejected:
		c.Heading = "Not connected"
		return "rejected", c
	}
	c.Heading, c.Refresh = "Connect UCloud with "+p.o.Title, refreshOpen
	c.Ticket = v.Ticket.String()
	c.Fingerprint, c.KeyWithdrawn = v.Key.Fingerprint, v.Key.Withdrawn
	c.Expires = v.ExpiresAt.UTC().Format("2 January 2006, 15:04 UTC")
	if p.custom != nil {
		c.Custom = renderMarkdown(p.custom, map[string]string{
			"ucloudUsername": c.User, "ticket": c.Ticket, "contact": p.o.Contact,
		})
	}
	return "open", c
}

// write sends a page with the headers that all of them have.
func (p *page) write(w http.ResponseWriter, r *http.Request, status int, name string, c content) error {
	c.Title, c.UCloud, c.Style = p.o.Title, p.ucloud, template.CSS(pageCSS)
	c.SelfService, c.Contact = p.o.SelfService, p.o.Contact
	c.Mail, c.ContactURL = contactLinks(p.o.Contact, p.o.Title, c.User, c.Ticket)
	var buf bytes.Buffer
	if err := p.tmpl.ExecuteTemplate(&buf, name, c); err != nil {
		return fmt.Errorf("render the page: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	if c.Form == "" {
		h.Set("Referrer-Policy", "no-referrer") // the ticket is in the URL
		h.Set("Content-Security-Policy", p.csp+"'none'")
	} else {
		h.Set("Referrer-Policy", "same-origin") // with no-referrer, browsers would send the form with "Origin: null"
		h.Set("Content-Security-Policy", p.csp+"'self'")
	}
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("X-Robots-Tag", "noindex, nofollow")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(buf.Bytes()) // the client may be gone
	}
	return nil
}

// contactLinks turns the contact into a link: a mail that is written already, or a web page. Neither, if it is neither. The mail
// has no signing key: whoever has made UCloud show a ticket could send both, and the operator would compare our word with itself.
func contactLinks(contact, title, user, tk string) (mail, web string) {
	if strings.HasPrefix(contact, "https://") || strings.HasPrefix(contact, "http://") {
		return "", contact
	}
	address := strings.TrimPrefix(contact, "mailto:")
	if !strings.Contains(address, "@") || strings.ContainsAny(address, " ?&<>\"") {
		return "", ""
	}
	// RFC 6068: blanks are %20, not "+".
	esc := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	mail = "mailto:" + address + "?subject=" + esc("Connect UCloud with "+title)
	if tk != "" {
		mail += "&body=" + esc("UCloud user: "+user+"\r\nTicket: "+tk+"\r\n")
	}
	return mail, ""
}
