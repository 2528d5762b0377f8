package devcore

import (
	"net/http"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// usageKey is what Core keeps one total for: an owner and a scope, whatever the category (contract 30 section 3).
type usageKey struct {
	owner ident.Owner
	scope string
}

// serveReportUsage records usage as recording 12 shows. Items are processed in order, and the first one that is refused
// ends the call: those before it stay recorded.
func (c *Core) serveReportUsage(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.BulkRequest[providerapi.UsageItem]](w, r)
	if !ok {
		return
	}
	if len(req.Items) > 500 {
		c.violate(r.URL.Path, "more than 500 items", false)
	}
	answers := make([]bool, 0, len(req.Items))
	for _, item := range req.Items {
		usable, why := c.recordUsage(item)
		if why != "" {
			errorBody(w, http.StatusForbidden, why)
			return
		}
		answers = append(answers, usable)
	}
	respond(w, http.StatusOK, providerapi.BulkResponse[bool]{Responses: answers})
}

func (c *Core) recordUsage(item providerapi.UsageItem) (usable bool, refusal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	owner := ident.Owner{User: item.Owner.Username, Project: item.Owner.ProjectID}
	switch {
	case item.CategoryIDV2.Provider != c.opt.Provider:
		return false, "You cannot report usage for this product"
	case c.categories[item.CategoryIDV2.Name] == nil:
		return false, "This category does not exist"
	case owner.IsProject() && c.projects[owner.Project] == nil || !owner.IsProject() && c.users[owner.User] == nil:
		return false, "This user/project does not exist"
	case !item.IsDeltaCharge && item.Usage < 0:
		return false, "Absolute usage cannot be negative"
	}
	wal := c.wallets[walletKey{owner, item.CategoryIDV2.Name}]
	if wal == nil {
		return false, ""
	}
	change := item.Usage
	if scope := item.Description.Scope; scope != nil {
		key := usageKey{owner, *scope}
		old := c.usage[key]
		if !item.IsDeltaCharge {
			change -= old
		}
		c.usage[key] = old + change
	} else if !item.IsDeltaCharge {
		change -= wal.usage
	}
	before := wal.usage >= wal.quota
	wal.usage += change
	if over := wal.usage >= wal.quota; over != before { // a significant update (contract 30 section 4)
		wal.locked = over
		c.touchLocked(wal)
		c.announceWalletLocked(walletKey{owner, item.CategoryIDV2.Name})
	}
	return !wal.locked, ""
}

// Usage is what Core has recorded for a wallet, in units of the category.
func (c *Core) Usage(owner ident.Owner, categoryName string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.wallets[walletKey{owner, categoryName}]; w != nil {
		return w.usage
	}
	return 0
}

// ScopedUsage is the total that Core keeps for a scope of an owner; false if nothing was ever reported for it.
func (c *Core) ScopedUsage(owner ident.Owner, scope string) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.usage[usageKey{owner, scope}]
	return n, ok
}
