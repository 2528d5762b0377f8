package gateway

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"strconv"
	"strings"

	"ucloud-im/internal/failure"
)

// refreshSeconds is how often the page of an application that is not ready looks again.
const refreshSeconds = 3

// webPage is what is shown instead of an application. All texts are ours: nothing of a request is in them.
type webPage struct {
	status  int
	title   string
	text    string
	refresh bool // the page becomes the application by itself
}

// Pages for what can happen.
var (
	pageQueued = webPage{
		http.StatusServiceUnavailable, "Your job is not running yet",
		"The application opens here as soon as the job has started. This can take a while when the cluster is busy.", true,
	}
	pageStarting = webPage{
		http.StatusServiceUnavailable, "The application is starting",
		"The job runs, and the application is not ready yet. It opens here by itself. If this takes longer than some minutes, look at the log of the job in UCloud.", true,
	}
	pageForeign = webPage{
		http.StatusBadGateway, "The application cannot be reached",
		"The port of this job on its node is in use by a program that does not belong to the job. If this stays so, stop the job and start it again.", true,
	}
	pageBroken = webPage{
		http.StatusBadGateway, "The application did not answer",
		"The application closed the connection before it answered. Load the page again; if that does not help, look at the log of the job in UCloud.", false,
	}
	pageNoSession = webPage{
		http.StatusForbidden, "Please open this application from UCloud",
		"This browser has no access to the application, or no access any more. Go to the job in UCloud and open the interface there.", false,
	}
	pageLink = webPage{
		http.StatusNotFound, "This link is not valid any more",
		"Links to applications can be used once and for a short time. Go to the job in UCloud and open the interface again.", false,
	}
	pageOrigin = webPage{
		http.StatusForbidden, "Refused",
		"Another web page has tried to use this application.", false,
	}
	pageBusy = webPage{
		http.StatusTooManyRequests, "Too many requests",
		"The application has too many requests at a time. Try again in a moment.", false,
	}
	pageAway = webPage{
		http.StatusServiceUnavailable, "One moment, please",
		"The service at this provider is restarting. The page loads again by itself.", true,
	}
	pageUnknown = webPage{http.StatusNotFound, "Not found", "Not found.", false}
)

// pageOf chooses the page for an error.
func pageOf(err error) (webPage, bool) {
	if _, ok := asLimit(err); ok {
		return pageBusy, true
	}
	switch {
	case errors.Is(err, errNotRunning):
		return pageQueued, true
	case errors.Is(err, errForeign):
		return pageForeign, true
	case errors.Is(err, errNoSession):
		return pageNoSession, true
	case errors.Is(err, errUnknownLink):
		return pageLink, true
	case errors.Is(err, errOtherOrigin):
		return pageOrigin, true
	case errors.Is(err, errWebBusy):
		return pageBusy, true
	case errors.Is(err, errNoWebHost), errors.Is(err, errShut):
		return pageUnknown, true
	case errors.Is(err, errNotHandedOver):
		return pageStarting, true
	case errors.Is(err, errClient), errors.Is(err, context.Canceled):
		return webPage{}, false
	case errors.Is(err, errNoAnswer), errors.Is(err, errBadAnswer):
		return pageBroken, true
	}
	if failure.Is(err, failure.Unavailable) {
		return pageAway, true
	}
	return webPage{}, false
}

// failWeb answers with a page for people, or with a line of text for programs.
func (ex *exchange) failWeb(err error) {
	page, ok := pageOf(err)
	if !ok {
		failure.WriteHTTP(&ex.w, classifyError(err))
		return
	}
	h := ex.w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if page.refresh {
		h.Set("Retry-After", strconv.Itoa(refreshSeconds))
	}
	if !ex.wantsPage || page == pageUnknown {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		ex.w.WriteHeader(page.status)
		ex.w.Write([]byte(page.text + "\n")) //nolint:errcheck // the client has gone
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
	ex.w.WriteHeader(page.status)
	data := struct {
		Title, Text, UCloud string
		Refresh             int
	}{page.title, page.text, ex.settings.Web.UCloud, 0}
	if page.refresh {
		data.Refresh = refreshSeconds
	}
	webTemplate.Execute(&ex.w, data) //nolint:errcheck // the client has gone
}

// wantsPage tells whether a person looks at the answer.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(strings.Join(r.Header["Accept"], ","), "text/html")
}

var webTemplate = template.Must(template.New("").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
{{if .Refresh}}<meta http-equiv="refresh" content="{{.Refresh}}">
{{end}}<title>{{.Title}}</title>
<style>
:root{color-scheme:light dark;--fg:#1b2330;--bg:#f5f7fa;--card:#fff;--soft:#49566a;--line:#ccd4df;--link:#0b4fa8}
@media (prefers-color-scheme:dark){:root{--fg:#e8ecf2;--bg:#12161c;--card:#1b212a;--soft:#aeb9c8;--line:#38424f;--link:#8fbcff}}
body{margin:0;padding:1rem;background:var(--bg);color:var(--fg);font:1.0625rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:38rem;margin:12vh auto 0;padding:1.5rem 2rem 2rem;background:var(--card);border:1px solid var(--line);border-radius:.75rem}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0 1rem}
.note{color:var(--soft)}
a{color:var(--link)}
</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
<p role="status">{{.Text}}</p>
{{if .Refresh}}<p class="note">This page looks again every {{.Refresh}} seconds by itself.</p>
{{end}}{{if .UCloud}}<p><a href="{{.UCloud}}">Go to UCloud</a></p>
{{end}}</main>
</body>
</html>
`))
