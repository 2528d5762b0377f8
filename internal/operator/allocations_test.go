package operator

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/store"
)

// TestAllocations: what UCloud has said and what was made of it, and an operator who has it done again.
func TestAllocations(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var applied []ident.Owner
	w := newWorld(t, func(o *Options) {
		o.Units = func() map[string]string { return map[string]string{"disk": "GB"} }
		o.Apply = func(owner ident.Owner) {
			mu.Lock()
			defer mu.Unlock()
			applied = append(applied, owner)
		}
	})
	if _, err := invoke(t, w, ipcapi.TicketApprove, ipcapi.TicketApproval{Ticket: w.begin(t, alice), User: alice, Local: "kay", WaitMs: 10_000}); err != nil {
		t.Fatal(err)
	}
	owner, project := ident.Owner{User: alice}, ident.Owner{Project: reef}
	at := time.UnixMilli(1_900_000_000_000)
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error {
		for _, x := range []store.Wallet{
			{Owner: owner, Category: "disk", CombinedQuota: 200, TotalUsage: 5, LastUpdate: at},
			{Owner: project, Category: "disk", CombinedQuota: 10, TotalUsage: 12, Locked: true, LastUpdate: at},
			{Owner: project, Category: "cpu", IsAllocator: true, LastUpdate: at},
		} {
			if _, err := tx.PutWallet(x); err != nil {
				return err
			}
		}
		for i, id := range []string{"d-old", "d-new"} {
			if err := tx.PutDrive(store.Drive{ProviderGeneratedID: id, Owner: owner, Category: "disk", State: store.DriveRegistered}); err != nil {
				return err
			}
			q := store.DriveQuota{ProviderGeneratedID: id, Bytes: int64(100 + i), AppliedAt: at.Add(time.Duration(i) * time.Hour)}
			if err := tx.PutDriveQuota(q); err != nil {
				return err
			}
			if err := tx.PutUsageReport(store.UsageReport{Owner: owner, Scope: id, Category: "disk", Units: 45}); err != nil {
				return err
			}
		}
		if err := tx.PutDrive(store.Drive{ProviderGeneratedID: "p", Owner: project, Category: "disk", State: store.DriveDesired}); err != nil {
			return err
		}
		if err := tx.PutDriveQuota(store.DriveQuota{ProviderGeneratedID: "p", Attempts: 3, LastError: "no vault"}); err != nil {
			return err
		}
		return tx.SetProjectGroup(reef, gidReef, "reef")
	}); err != nil {
		t.Fatal(err)
	}
	all, err := collect(t.Context(), w.client, ipcapi.AllocationList, ipcapi.Empty{}, func(p ipcapi.AllocationPage) []ipcapi.AllocationInfo { return p.Items })
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	cpu, user, shared := all[0], all[1], all[2]
	if !cpu.Allocator || cpu.Unit != "" || cpu.Percent != 0 {
		t.Errorf("%+v", cpu)
	}
	if user.Local != "kay" || user.Unit != "GB" || user.Used != 90 || user.Percent != 45 || user.Locked || user.Drives != 2 || *user.AppliedBytes != 100 || !user.AppliedAt.Equal(at) {
		t.Errorf("%+v", user)
	}
	if shared.Local != "reef" || shared.Used != 12 || shared.Percent != 120 || !shared.Locked || shared.AppliedAt != nil || shared.Problem != "no vault" {
		t.Errorf("%+v", shared)
	}

	apply := func(dry bool, targets ...ipcapi.AllocationTarget) []ipcapi.MutationResult {
		return must(t, w, ipcapi.AllocationApply, ipcapi.AllocationMutation{Targets: targets, DryRun: dry}).Results
	}
	apply(true, ipcapi.AllocationTarget{User: alice})
	got := apply(false, ipcapi.AllocationTarget{User: alice}, ipcapi.AllocationTarget{User: mary}, ipcapi.AllocationTarget{}, ipcapi.AllocationTarget{Project: reef})
	if got[0].Error != nil || got[1].Error.Status != failure.NotFound.Status() || got[2].Error.Status != failure.Invalid.Status() || got[3].Error != nil {
		t.Errorf("%+v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(applied, []ident.Owner{owner, project}) || !strings.Contains(w.audit.String(), "action=allocation.apply result=404") {
		t.Errorf("%v", applied)
	}
}
