package driveplan

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ucloud-im/internal/coreapi"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
)

// KindRegister is the kind of our entries in the outbox.
const KindRegister = "drive.register"

const (
	// unansweredPause is how long after an attempt without an answer the next may come: a Core that dies of a
	// registration needs up to 20 s to do so (contract 05 section C, rule 6).
	unansweredPause = 30 * time.Second

	// closedPause is how often a closed gate is looked at, refusedPause how often a registration that Core refuses is
	// repeated.
	closedPause  = time.Minute
	refusedPause = 10 * time.Minute
)

var errInterrupted = errors.New("the process ended during the registration")

// payload is what stands in the outbox. Everything else is read from the drive when its turn comes.
type payload struct {
	ProviderGeneratedID string `json:"providerGeneratedId"`
}

func encodePayload(id string) ([]byte, error) { return json.Marshal(payload{ProviderGeneratedID: id}) }

// outboxKey makes drives independent of one another: a suspect one holds up nothing else.
func outboxKey(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "drive/" + hex.EncodeToString(sum[:16])
}

// deliver makes one attempt to register a drive. See contract 05 section C for the rules.
func (p *Planner) deliver(ctx context.Context, e store.OutboxEntry) (outbox.Result, error) {
	var in payload
	if err := json.Unmarshal(e.Payload, &in); err != nil {
		return outbox.Result{}, outbox.Permanent(fmt.Errorf("decode the delivery: %w", err))
	}
	id := in.ProviderGeneratedID
	kept := func(err error) (outbox.Result, error) {
		return outbox.Result{Kept: func(tx *store.Tx, e store.OutboxEntry) error { return keep(tx, id, e) }}, err
	}
	var d store.Drive
	var closed string
	err := p.o.Store.View(ctx, func(tx *store.Tx) (err error) {
		if d, err = tx.Drive(id); err != nil {
			return err
		}
		closed, err = p.gate(tx, d)
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return outbox.Result{}, outbox.Permanent(errors.New("the drive is not in the database"))
	case err != nil:
		return kept(err)
	case d.State == store.DriveRegistered:
		return outbox.Result{}, nil
	}

	// Anything but a first attempt may have been carried out already: ask before sending (rule 6).
	if e.Attempts > 0 || e.State == store.OutboxSuspect {
		found, ok, err := p.o.Core.FindDrive(ctx, id)
		if err != nil {
			return kept(fmt.Errorf("ask for the drive: %w", err))
		}
		if ok {
			return p.adopt(d, found)
		}
	}
	if closed != "" {
		return kept(outbox.RetryAfter(errors.New(closed), closedPause))
	}
	if err := p.stillThere(d); err != nil {
		return kept(outbox.RetryAfter(err, closedPause))
	}
	driveID, err := p.o.Core.RegisterDrive(ctx, p.item(d))
	switch status := coreapi.Status(err); {
	case err == nil:
		return p.done(d, driveID), nil
	case errors.Is(err, coreapi.ErrNotSent):
		return kept(err)
	case coreapi.Unanswered(err):
		// Sent again by itself once, after that pause and after asking; then an operator decides.
		return kept(outbox.Suspect(outbox.RetryAfter(err, unansweredPause)))
	case status == http.StatusConflict:
		return p.conflict(ctx, d, kept)
	case status >= 400 && status < 500:
		p.log.Error("Core refuses a drive", "drive", d.Path, "owner", d.Owner.Reference(), "error", err)
		return kept(outbox.RetryAfter(err, refusedPause))
	default:
		return kept(outbox.RetryAfter(err, closedPause))
	}
}

// item is the registration as Core wants it: labels null, the product from the one constant, a project's drive without
// a creator and open to all its members (rules 1, 2 and 5), that of one member created by and open to that member.
func (p *Planner) item(d store.Drive) providerapi.RegisterDrive {
	ref, _ := p.o.Products.Reference(d.Category) // the gate has made sure
	item := providerapi.RegisterDrive{
		Spec:                providerapi.DriveSpecification{Title: d.Title, Product: ref},
		ProviderGeneratedID: d.ProviderGeneratedID,
	}
	switch {
	case d.Member != "":
		item.Project, item.CreatedBy = &d.Owner.Project, &d.Member
	case d.Owner.IsProject():
		item.Project, item.ProjectAllRead, item.ProjectAllWrite = &d.Owner.Project, true, !d.ReadOnly
	default:
		item.CreatedBy = &d.Owner.User
	}
	return item
}

// conflict finds out which drive has our id already (rule 4).
func (p *Planner) conflict(ctx context.Context, d store.Drive, kept func(error) (outbox.Result, error)) (outbox.Result, error) {
	for _, find := range []func(context.Context, string) (providerapi.Drive, bool, error){
		p.o.Core.FindDrive, p.o.Core.FindDriveByBrowsing,
	} {
		found, ok, err := find(ctx, d.ProviderGeneratedID)
		if err != nil {
			return kept(fmt.Errorf("find the drive that has the id: %w", err))
		}
		if ok {
			return p.adopt(d, found)
		}
	}
	// Some other resource of ours has it, or a registration failed half-way in Core. No second id is invented.
	p.log.Error("Core says that the id of a drive is taken and does not show by what", "drive", d.Path, "owner", d.Owner.Reference())
	return kept(outbox.Suspect(errors.New("the id is taken at Core, and Core shows no drive with it")))
}

// adopt takes over a drive that Core knows under our id, if it is what we mean.
func (p *Planner) adopt(d store.Drive, found providerapi.Drive) (outbox.Result, error) {
	ref := found.Specification.Product
	if owner := found.Owner.Workspace(); owner != d.Owner || (d.Member != "" && found.Owner.CreatedBy != d.Member) || ref.Category != d.Category || ref.ID != d.Product {
		err := fmt.Errorf("core has drive %s under this id, of %s in %s/%s", found.ID, owner.Reference(), ref.Category, ref.ID)
		p.log.Error("a drive is known to Core as another", "drive", d.Path, "owner", d.Owner.Reference(), "error", err)
		return outbox.Result{Complete: func(tx *store.Tx) error {
			return update(tx, d.ProviderGeneratedID, func(d *store.Drive) {
				d.State, d.LastError = store.DriveFailed, err.Error()
			})
		}}, outbox.Permanent(err)
	}
	return p.done(d, found.ID), nil
}

// done stores Core's id. It runs in the transaction that removes the entry.
func (p *Planner) done(d store.Drive, id ident.DriveID) outbox.Result {
	return outbox.Result{Complete: func(tx *store.Tx) error {
		tx.AfterCommit(func() {
			p.log.Info("drive registered", "drive", string(id), "owner", d.Owner.Reference(), "path", d.Path)
			if p.o.Registered != nil {
				p.o.Registered(d.Owner, id)
			}
		})
		return update(tx, d.ProviderGeneratedID, func(d *store.Drive) {
			d.ID, d.State, d.LastError = id, store.DriveRegistered, ""
		})
	}}
}

// keep shows in the drive's row how the delivery stands.
func keep(tx *store.Tx, id string, e store.OutboxEntry) error {
	return update(tx, id, func(d *store.Drive) {
		d.State, d.LastError = store.DriveRegistering, e.LastError
		if e.State == store.OutboxSuspect {
			d.State = store.DriveSuspect
		}
	})
}

// update changes the row of a drive. One that is gone meanwhile needs nothing.
func update(tx *store.Tx, id string, change func(*store.Drive)) error {
	d, err := tx.Drive(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.State == store.DriveRegistered {
		return nil // final
	}
	change(&d)
	d.UpdatedAt = time.Now()
	return tx.PutDrive(d)
}

// stillThere repeats the check of the directory directly before the registration. A drive whose locator is no longer
// configured has no root to check from, and is not registered.
func (p *Planner) stillThere(d store.Drive) error {
	l := p.locatorOf(d)
	if l == nil {
		return ErrNoLocator
	}
	root, err := checkPath(d.Path, l.AllowedRoots)
	if err != nil {
		return err
	}
	return checkDirectory(root, d.Path)
}
