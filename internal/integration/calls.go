package integration

import (
	"context"
	"net/http"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/httpx"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// manifest tells Core that users must connect. expireAfterMs is always null: Core's test of it is inverted, so expiry
// is ours to enforce (contract 03 section 2.4).
func (h *Handler) manifest(w http.ResponseWriter, r *http.Request) error {
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.Manifest{Enabled: true})
	return nil
}

// userOf reads the user whom a call is about. A user name header must name the same one (contract 01 section 5).
func (h *Handler) userOf(w http.ResponseWriter, r *http.Request) (ident.UCloudUser, error) {
	var body providerapi.FindByUser
	if err := httpx.DecodeJSON(w, r, httpx.MaxBody, &body); err != nil {
		return "", err
	}
	user, err := ident.ParseUCloudUser(string(body.Username))
	if err != nil {
		return "", failure.Wrap(err, failure.Invalid, "The user name is missing or not valid")
	}
	headers := r.Header.Values(ident.HeaderUser)
	if len(headers) == 0 {
		return user, nil
	}
	if len(headers) > 1 {
		return "", failure.New(failure.Invalid, "There is more than one user name header")
	}
	caller, err := ident.DecodeUserHeader(headers[0])
	if err != nil {
		return "", failure.Wrap(err, failure.Invalid, "The user name header cannot be read")
	}
	if caller != user {
		return "", failure.New(failure.Forbidden, "The call is made for one user and about another")
	}
	return user, nil
}

// connect starts a connection and tells the browser where to go.
func (h *Handler) connect(w http.ResponseWriter, r *http.Request) error {
	user, err := h.userOf(w, r)
	if err != nil {
		return err
	}
	if err := h.o.Maintenance().Check(user); err != nil {
		return err
	}
	if h.o.Method == nil {
		return failure.New(failure.Invalid, "Connecting is switched off at this provider")
	}
	to, err := h.o.Users.Begin(r.Context(), h.o.Method, user)
	if err != nil {
		return err
	}
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.ConnectResponse{RedirectTo: to})
	return nil
}

// unlinked ends a connection. It succeeds for users who never were connected, also with names that cannot exist:
// any error makes Core put the connection back (contract 03 section 2.4). The only error is that we could not write
// the end down; putting the connection back is right then.
func (h *Handler) unlinked(w http.ResponseWriter, r *http.Request) error {
	user, err := h.userOf(w, r)
	switch failure.KindOf(err) {
	case failure.Forbidden, failure.TooLarge:
		return err // not a call that Core makes
	}
	if err == nil {
		if err := h.o.Users.Unlinked(r.Context(), user); err != nil {
			return err
		}
	}
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.Empty{})
	return nil
}

// launch answers integration/init: it launches the user's instance and answers when that is ready.
func (h *Handler) launch(w http.ResponseWriter, r *http.Request) error {
	user, err := h.userOf(w, r)
	if err != nil {
		return err
	}
	if err := h.o.Maintenance().Check(user); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.o.InitWait)
	defer cancel()
	if err := h.o.Launcher.Wake(ctx, user); err != nil {
		return notLaunched(ctx, err)
	}
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.Empty{})
	return nil
}

// notLaunched is the answer of init for a user without an instance: 400 with what the user can do (contract 02 section
// 9.22). It is never 449 or 503: those mean "call init", which this is.
func notLaunched(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return failure.Wrap(err, failure.Invalid, "Your session is still being started. Please try again in a moment")
	}
	if failure.Is(err, failure.Internal) {
		return err
	}
	return failure.Wrap(err, failure.Invalid, "%s", failure.Why(err))
}

func (h *Handler) storageProducts(w http.ResponseWriter, r *http.Request) error {
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.BulkResponse[providerapi.FSSupport]{Responses: h.o.Products.Storage()})
	return nil
}

func (h *Handler) computeProducts(w http.ResponseWriter, r *http.Request) error {
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.BulkResponse[providerapi.JobSupport]{Responses: h.o.Products.Compute()})
	return nil
}

// noProducts answers for the areas in which nothing is offered. The empty list is {} (contract 30 section 7).
func (h *Handler) noProducts(w http.ResponseWriter, r *http.Request) error {
	httpx.WriteJSON(w, r, http.StatusOK, providerapi.BulkResponse[providerapi.Empty]{})
	return nil
}
