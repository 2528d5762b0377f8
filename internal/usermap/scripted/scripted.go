// Package scripted finds the account of a user by a script of the site, which makes it if need be (contract 42 section
// B.1). It is the [assigned.Look] of identity type Scripted.
//
// The script is called on every "Connect", and must answer the same uid for the same user. It is called once, and a second
// time if it asks for that by exit status 75; for a repetition after any other failure the user presses the button again.
// With exit status 77 the user sees the script's own sentence, otherwise a general one with the number of the call, by which
// the operators find it.
//
// What the script answers is not trusted, see package assigned.
package scripted

import (
	"context"
	"errors"
	"fmt"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/assigned"
)

// MethodName is what the mapping's Method says for accounts that a script has assigned.
const MethodName = "scripted"

// Options configure [New]. All are required.
type Options struct {
	Hook    func() *scripts.Hook // a [scripts.HookUserConnected]; it may change
	Group   func() string        // in which the account must be
	Suggest func(Names) string   // how a new account could be called
	// Account gives the account with a uid, if the policy allows it. It waits some time for the name service to know a new
	// one.
	Account func(ctx context.Context, uid ident.UID) (usermap.Account, error)
}

// New makes a look that asks the script.
func New(o Options) (assigned.Look, error) {
	if o.Hook == nil || o.Group == nil || o.Suggest == nil || o.Account == nil {
		return nil, errors.New("scripted: Hook, Group, Suggest and Account are required")
	}
	return o.look, nil
}

func (o Options) look(ctx context.Context, q assigned.Query) (usermap.Account, error) {
	names := SplitNames(q.User)
	var reply scripts.UIDReply
	err := o.Hook().CallForPerson(ctx, scripts.Call{
		Key: "user/" + string(q.User), Owner: ident.Owner{User: q.User}, Reason: "connect",
		Request: scripts.ConnectRequest{
			UCloudUsername: q.User, FirstName: names.First, LastName: names.Last, SuggestedUsername: o.Suggest(names), ExistingUID: q.Existing,
			LaunchGroup: o.Group(),
		},
	}, &reply)
	if err != nil {
		return usermap.Account{}, explain(err)
	}
	uid := ident.UID(*reply.UID) //nolint:gosec // checked by the reply
	a, err := o.Account(ctx, uid)
	switch failure.KindOf(err) {
	case failure.Forbidden, failure.NotFound, failure.Invalid:
		if err != nil {
			// The policy speaks to operators, and it is their script that is wrong.
			return a, failure.Wrap(fmt.Errorf("the script onUserConnected answered uid %d: %w", uid, err), failure.Forbidden,
				"The account that was made for you cannot be used. Please tell the operators of this provider")
		}
	}
	return a, err
}

// explain makes a sentence for the user of a failed call.
func explain(err error) error {
	e, ok := errors.AsType[*scripts.Error](err)
	if !ok {
		return err
	}
	switch {
	case e.Kind == scripts.NotPermitted && e.UserMessage != "":
		return failure.Wrap(err, failure.Forbidden, "%s", e.UserMessage)
	case e.Kind == scripts.NotPermitted:
		return failure.Wrap(err, failure.Forbidden, "You cannot have an account at this provider. Please ask its operators")
	}
	return failure.Wrap(err, failure.Forbidden,
		"Your account could not be made. Please try again later, or tell the operators of this provider the number of the attempt: %s", e.Invocation)
}
