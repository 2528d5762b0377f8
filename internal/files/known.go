package files

import (
	"context"
	"sync"

	"ucloud-im/internal/drives"
	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// known remembers the drives that requests came with. A few calls name a drive by its id only; by then the client has
// nearly always listed a folder of it. What is remembered comes from Core, like every request: while users have to sign
// what they ask for, the server's word counts more, since a drive in another place would turn a signed removal against
// other files.
type known struct {
	mu    sync.Mutex // guards the fields below
	byID  map[ident.DriveID]knownDrive
	order []ident.DriveID // oldest first
}

// knownDrive is what it takes to find the folder of a drive. There are no permissions: they are those of each request.
type knownDrive struct {
	base    string // providerGeneratedId
	product providerapi.ProductReference
}

// maxKnown bounds the memory to some 100 KiB. A user has a few dozen drives.
const maxKnown = 512

// drive checks the drive of a request, and remembers it.
func (s *Service) drive(st *state, d *providerapi.Drive) (drives.Ref, error) {
	ref, err := st.set.Drive(d)
	if err != nil {
		return ref, err
	}
	s.known.remember(d)
	return ref, nil
}

// remember notes the drive of a request, or one that the server has found.
func (n *known) remember(d *providerapi.Drive) {
	k := knownDrive{base: d.ProviderGeneratedID, product: d.Specification.Product}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, ok := n.byID[d.ID]; !ok {
		if len(n.order) == maxKnown {
			delete(n.byID, n.order[0])
			n.order = append(n.order[:0], n.order[1:]...)
		}
		n.order = append(n.order, d.ID)
	} else if old == k {
		return
	}
	n.byID[d.ID] = k
}

// driveByID gives a drive with the permissions that the request came with.
func (s *Service) driveByID(ctx context.Context, id ident.DriveID, permissions *providerapi.Permissions) (*providerapi.Drive, error) {
	s.known.mu.Lock()
	k, ok := s.known.byID[id]
	s.known.mu.Unlock()
	remembered := func() (*providerapi.Drive, error) {
		return &providerapi.Drive{
			ID: id, ProviderGeneratedID: k.base, Permissions: permissions,
			Specification: providerapi.DriveSpecification{Product: k.product},
		}, nil
	}
	doubt := s.o.Doubt != nil && s.o.Doubt()
	if ok && !doubt {
		return remembered()
	}
	if s.o.FindDrive == nil {
		return nil, failure.New(failure.NotFound, "This drive is not known here. Open one of its folders and try again.")
	}
	d, err := s.o.FindDrive(ctx, id)
	if ok && failure.Is(err, failure.NotFound) {
		return remembered() // the server has no other place for it
	}
	if err != nil {
		return nil, err
	}
	if d.ID != id {
		return nil, failure.New(failure.NotFound, "This drive is not known here")
	}
	s.known.remember(&d)
	d.Permissions = permissions
	return &d, nil
}
