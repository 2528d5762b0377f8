package fileserver

import (
	"net/http"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
)

// NothingOffered is why the calls of [notOffered] need no signed intent.
const NothingOffered = "nothing is offered, so nothing is done"

// notOffered are the calls about resources that a provider of this kind does not have (contract 23 sections 1, 2 and 9).
// Core makes them without looking at what is announced, and shows its user what they are refused with; what is not known
// at all would be a 404.
func notOffered() []Route {
	var routes []Route
	add := func(method, path string, serve func(http.ResponseWriter, *Call) error) {
		routes = append(routes, Route{
			Method: method, Path: path, Class: hoptoken.ClassCore, MaxBody: bulkBody, Serve: serve, Intent: intent.Rule{Exempt: NothingOffered},
		})
	}
	for _, r := range []struct {
		path, what string
		more       []string // operations besides those that all of them have
	}{
		{"ingresses", "public links", nil},
		{"networkips", "public IP addresses", []string{"firewall"}},
		{"licenses", "licenses of software", nil},
		{"private-networks", "private networks", nil},
	} {
		serve := refuse("This provider does not offer " + r.what)
		add(http.MethodPost, r.path, serve)
		add(http.MethodDelete, r.path, serve)
		for _, operation := range append([]string{"updateAcl", "onUpdatedLabels", "verify"}, r.more...) {
			add(http.MethodPost, r.path+"/"+operation, serve)
		}
	}
	tokens := refuse("This provider does not offer API tokens")
	add(http.MethodPost, "tokens", tokens)
	add(http.MethodPost, "tokens/revoke", tokens)
	add(http.MethodGet, "tokens/retrieveOptions", func(w http.ResponseWriter, c *Call) error {
		c.writeBody(w, []byte(`{"availablePermissions":[]}`))
		return nil
	})
	return routes
}

// refuse makes the handler of a call that can never do anything. That is the caller's mistake: 400.
func refuse(why string) func(http.ResponseWriter, *Call) error {
	return func(http.ResponseWriter, *Call) error { return failure.New(failure.Invalid, "%s", why) }
}
