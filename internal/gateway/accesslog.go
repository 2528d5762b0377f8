package gateway

import (
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
)

// statusClientGone is logged, as many servers do, when the client left before there was an answer.
const statusClientGone = 499

// maxLogged bounds each text from outside in a log record, in bytes.
const maxLogged = 512

// finish records the request. It is deferred, so it also sees answers that were cut off.
func (ex *exchange) finish(r *http.Request) {
	took := time.Since(ex.arrival)
	status := ex.w.status
	if status == 0 {
		status = http.StatusOK // an upgrade that failed before its head, or a handler that wrote nothing
	}
	if r.Context().Err() != nil && (ex.err != nil || ex.aborted) {
		status = statusClientGone
	}
	ex.g.metrics.record(ex, status, took)
	ex.account(status)
	if ex.conn != nil && r.ProtoMajor == 2 && r.Context().Err() != nil {
		ex.conn.reset(time.Now(), &ex.settings.Limits)
	}
	if !ex.settings.AccessLog || !ex.g.access.Enabled(r.Context(), slog.LevelInfo) {
		return
	}
	if ex.err != nil && ex.class != classCore && !ex.g.refusals.write(ex.client.ip, status, time.Now()) {
		return
	}
	attrs := make([]slog.Attr, 0, 20)
	attrs = append(attrs,
		slog.String("request", ex.id),
		slog.String("method", clip(r.Method)),
		slog.String("path", clip(ex.loggedPath(r))),
		slog.Int("status", status),
		milliseconds("took_ms", took),
		slog.String("target", ex.target.String()),
		slog.String("class", ex.class.String()),
		slog.String("proto", r.Proto),
		slog.Int64("in", ex.bytes.in.Load()),
		slog.Int64("out", ex.bytes.out.Load()),
	)
	if ex.client.ip.IsValid() {
		attrs = append(attrs, slog.String("client", ex.client.ip.String()))
	}
	if ex.user != "" {
		attrs = append(attrs, slog.String("user", string(ex.user)))
	}
	if q := redactQuery(r.URL.RawQuery); q != "" {
		attrs = append(attrs, slog.String("query", clip(q)))
	}
	if ex.upTime > 0 {
		attrs = append(attrs, milliseconds("upstream_ms", ex.upTime))
	}
	if ex.held > 0 {
		attrs = append(attrs, milliseconds("held_ms", ex.held))
	}
	if ex.in != nil {
		attrs = append(attrs, slog.Any("uid", ex.in.route.UID), slog.Uint64("route", ex.in.route.ID))
	}
	if ex.target == targetWeb {
		attrs = append(attrs, slog.String("host", clip(r.Host)))
	}
	if ex.app != nil {
		attrs = append(attrs, slog.String("interface", ex.app.route.ID))
	}
	switch {
	case ex.err != nil:
		attrs = append(attrs, slog.String("error", clip(ex.err.Error())))
	case ex.aborted:
		attrs = append(attrs, slog.String("error", "the answer was cut off"))
	}
	ex.g.access.LogAttrs(r.Context(), slog.LevelInfo, "request", attrs...)
}

// loggedPath is the cleaned path, or what came if it could not be cleaned.
func (ex *exchange) loggedPath(r *http.Request) string {
	if ex.target == targetWeb {
		return "(application)" // paths of applications name users' files, and some have secrets in them
	}
	if ex.path != "" {
		return ex.path
	}
	raw, _, _ := strings.Cut(r.RequestURI, "?")
	return raw
}

// redactQuery keeps the names of all parameters and the value of the user hint only: nearly every other value in a query
// string that comes here is a secret of some kind (token, session, ticket, OpenID Connect's code and state).
func redactQuery(raw string) string {
	if raw == "" {
		return ""
	}
	var b strings.Builder
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(name)
		b.WriteByte('=')
		if decoded, err := url.QueryUnescape(name); err == nil && decoded == ident.QueryUserHint {
			b.WriteString(value)
		} else {
			b.WriteString(observability.Redacted)
		}
		if b.Len() > maxLogged {
			break
		}
	}
	return b.String()
}

// milliseconds is a duration in the unit that people read, to the microsecond.
func milliseconds(key string, d time.Duration) slog.Attr {
	return slog.Float64(key, float64(d.Microseconds())/1000)
}

func clip(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "..."
	}
	return s
}
