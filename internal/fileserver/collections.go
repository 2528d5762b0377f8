package fileserver

import (
	"context"
	"net/http"

	"ucloud-im/internal/hoptoken"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/providerapi"
)

// collectionRoutes are the calls about drives and shares (contract 12 section 2, contract 13 section 1.1). What products
// there are is answered by the server.
func (s *server) collectionRoutes() []Route {
	const drives = "files/collections"
	route := func(method, path string, serve func(http.ResponseWriter, *Call) error, rule intent.Rule) Route {
		return Route{Method: method, Path: path, Class: hoptoken.ClassCore, MaxBody: bulkBody, Serve: serve, Intent: rule}
	}
	signed := func(call string, owners ...string) intent.Rule {
		return intent.Rule{Calls: []string{call}, Owners: owners}
	}
	return []Route{
		route(http.MethodPost, drives, s.createDrives, signed("files.collections.create", "items[]")),
		route(http.MethodDelete, drives, bulk(s.files.DeleteDrives), signed("files.collections.delete", "items[]")),
		route(http.MethodPost, drives+"/rename", bulk(s.files.RenameDrives),
			intent.Rule{Calls: []string{"files.collections.rename"}, Drives: []string{"items[].id"}}),
		route(http.MethodPost, drives+"/updateAcl", bulk(s.updateACL), signed("files.collections.updateAcl", "items[].resource")),
		route(http.MethodPost, drives+"/onUpdatedLabels", s.noteDrives,
			intent.Rule{Calls: []string{"files.collections.onUpdatedLabels", "files.collections.updateLabels"}, Unsigned: true, Owners: []string{"items[]"}}),
		route(http.MethodPost, drives+"/verify", s.noteDrives,
			intent.Rule{Calls: []string{"files.collections.verify"}, Unsigned: true, Owners: []string{"items[]"}}),
		// Core makes these without looking at what is announced.
		route(http.MethodPost, "shares", refuse("shares not supported"), signed("shares.create")),
		route(http.MethodDelete, "shares", refuse("shares not supported"), signed("shares.delete")),
	}
}

func (s *server) createDrives(w http.ResponseWriter, c *Call) error {
	var req providerapi.BulkRequest[providerapi.Drive]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	ids, err := s.files.CreateDrives(context.WithoutCancel(c.Context()), req.Items)
	if err != nil {
		return err
	}
	answer := providerapi.BulkResponse[providerapi.FindByID]{Responses: make([]providerapi.FindByID, len(ids))}
	for i, id := range ids {
		answer.Responses[i].ID = id
	}
	return c.Write(w, answer)
}

// updateACL accepts changes of access lists. They are Core's: with each call it says what its user may do, and on disk
// the permissions of the file system count.
func (s *server) updateACL(_ context.Context, items []providerapi.UpdateDriveACL) error {
	for i := range items {
		s.files.KnowDrive(&items[i].Resource)
	}
	return nil
}

// noteDrives is for news about drives that mean nothing here but that Core knows them so.
func (s *server) noteDrives(w http.ResponseWriter, c *Call) error {
	var req providerapi.BulkRequest[providerapi.Drive]
	if err := c.Decode(w, &req); err != nil {
		return err
	}
	for i := range req.Items {
		s.files.KnowDrive(&req.Items[i])
	}
	return c.Write(w, providerapi.Empty{})
}
