package scripts

import (
	"context"
	"maps"
	"sync"
	"time"

	"ucloud-im/internal/ident"
)

// How long the place of a drive is remembered (contract 42 section B.6), and of how many.
const (
	locationLife = 15 * time.Minute
	maxLocations = 50_000
)

// Locations remembers where scripts have found drives. The zero value is empty and ready for use.
type Locations struct {
	mu sync.Mutex
	m  map[*Hook]map[ident.Owner]map[string]location // by the name of the locator
}

type location struct {
	vars  map[string]string // that the script was given
	found Location
	until time.Time
}

// Location is where a script has found a drive. An empty path means that there is no such drive.
type Location struct {
	Path     string
	Title    string // empty: as configured
	ReadOnly bool
}

// Forget has scripts asked again about owners: something about them has changed.
func (l *Locations) Forget(owners ...ident.Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, byOwner := range l.m {
		for _, o := range owners {
			delete(byOwner, o)
		}
	}
}

func (l *Locations) get(h *Hook, o ident.Owner, vars map[string]string) (Location, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, ok := l.m[h][o][locationName(vars)]
	if !ok || !time.Now().Before(found.until) || !maps.Equal(found.vars, vars) {
		return Location{}, false
	}
	return found.found, true
}

func (l *Locations) put(h *Hook, o ident.Owner, vars map[string]string, found Location) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[*Hook]map[ident.Owner]map[string]location{}
	}
	byOwner := l.m[h]
	if byOwner == nil || len(byOwner) >= maxLocations {
		byOwner = map[ident.Owner]map[string]location{} // a rare full start is cheaper than bookkeeping
		l.m[h] = byOwner
	}
	if byOwner[o] == nil {
		byOwner[o] = map[string]location{}
	}
	byOwner[o][locationName(vars)] = location{vars: maps.Clone(vars), found: found, until: time.Now().Add(locationLife)}
}

// Keep drops what hooks have said that are not in use any more, after a reload.
func (l *Locations) Keep(hooks ...*Hook) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.m, func(h *Hook, _ map[ident.Owner]map[string]location) bool {
		for _, k := range hooks {
			if h == k {
				return false
			}
		}
		return true
	})
}

// Names of the variables of contract 40 section 7 that are looked at here.
const (
	varLocator  = "locatorName"
	varCategory = "categoryName"
	varUser     = "ucloudUsername"
	varProject  = "ucloudProjectId"
)

// locationName is unique for each drive of an owner: a project may have one for each member.
func locationName(vars map[string]string) string {
	name := vars[varCategory] + "/" + vars[varLocator]
	if vars[varProject] != "" && vars[varUser] != "" {
		name += "/" + vars[varUser]
	}
	return name
}

func ownerOf(vars map[string]string) ident.Owner {
	if p := vars[varProject]; p != "" {
		return ident.Owner{Project: ident.ProjectID(p)}
	}
	return ident.Owner{User: ident.UCloudUser(vars[varUser])}
}

// Locator makes a function that asks the hook, which must be a [HookDriveLocator], where the drive of an owner is. The
// script gets the variables as they are. Whoever uses the path checks it. l is where answers are remembered; nil: nowhere.
//
// V is the type of the variables, such as driveplan.Vars.
func Locator[V ~map[string]string](h *Hook, l *Locations) func(ctx context.Context, vars V) (Location, error) {
	return func(ctx context.Context, vars V) (Location, error) { return h.locate(ctx, l, vars) }
}

func (h *Hook) locate(ctx context.Context, l *Locations, vars map[string]string) (Location, error) {
	owner := ownerOf(vars)
	if l != nil {
		if found, ok := l.get(h, owner, vars); ok {
			return found, nil
		}
	}
	var reply locatorReply
	err := h.Call(ctx, Call{
		Key: "owner/" + owner.Reference() + "/" + locationName(vars), Owner: owner, Request: vars, Reason: "evaluation",
	}, &reply)
	if err != nil {
		return Location{}, err
	}
	found := reply.location()
	if l != nil {
		l.put(h, owner, vars, found)
	}
	return found, nil
}
