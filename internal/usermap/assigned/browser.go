package assigned

import (
	"context"
	"errors"
	"fmt"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/store"
	"ucloud-im/internal/usermap/consent"
)

// Open is the first page: it binds the browser and sends it on.
func (m *Method) Open(ctx context.Context, session string) (consent.Opened, error) {
	started, err := m.o.Consent.Start(ctx, session)
	if err != nil {
		return consent.Opened{}, err
	}
	return consent.Opened{URL: m.o.Next, Cookie: started.Cookie}, nil
}

// Return is for identity providers, of which there is none here.
func (m *Method) Return(context.Context, string, string) error {
	return failure.New(failure.NotFound, "There is no login at this provider")
}

// View gives the content of the page for a browser: it waits, is asked, or sees what became of it.
func (m *Method) View(ctx context.Context, cookie string) (consent.View, error) {
	p, err := m.o.Consent.Waiting(ctx, cookie)
	if err != nil {
		return consent.View{}, err
	}
	if p != nil {
		waits, err := m.settle(ctx, p)
		if err != nil {
			return consent.View{}, err
		}
		if waits {
			return consent.View{Stage: consent.StageChecking, User: p.User(), Assigned: true}, nil
		}
	}
	v, err := m.o.Consent.View(ctx, cookie)
	v.Assigned = true
	return v, err
}

// settle takes a waiting login on, if its account has been looked for.
func (m *Method) settle(ctx context.Context, p *consent.Pending) (waits bool, err error) {
	var a store.Assignment
	err = m.o.Store.View(ctx, func(tx *store.Tx) error {
		a, err = tx.Assignment(p.User())
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		m.o.Consent.Fail(ctx, p, failure.Wrap(err, failure.NotFound, "Your account was not looked for. Please start again in UCloud"))
		return false, nil
	case err != nil:
		return false, err
	case a.State == store.AssignmentLooking:
		return true, nil
	case a.State == store.AssignmentFailed:
		m.o.Consent.Fail(ctx, p, failure.New(failure.Forbidden, "%s", a.Message))
		return false, nil
	}
	// Some time may have passed: the account that the user is asked about must be there now, under this name.
	account, err := m.o.Users.Check(ctx, a.UID.String())
	if err == nil && account.Name != a.LocalName {
		err = failure.New(failure.Forbidden, "uid %d was %q and is %q", a.UID, a.LocalName, account.Name)
	}
	if err == nil {
		err = m.o.Consent.Assign(ctx, p, account)
	}
	switch failure.KindOf(err) {
	case failure.Conflict, failure.Forbidden, failure.NotFound:
		if err != nil {
			m.o.Consent.Fail(ctx, p, failure.Wrap(err, failure.Forbidden, "%s", sayUseless))
			return false, nil
		}
	}
	if err != nil {
		err = fmt.Errorf("take the account of %q over: %w", p.User(), err)
	}
	return false, err
}

// Decide is the answer of the person, see [consent.Service.Decide].
func (m *Method) Decide(ctx context.Context, cookie, form string, agree bool) error {
	return m.o.Consent.Decide(ctx, cookie, form, agree)
}
