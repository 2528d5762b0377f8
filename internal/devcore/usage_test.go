package devcore

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// TestReportUsage replays recording 12.
func TestReportUsage(t *testing.T) {
	t.Parallel()
	c, srv := newCore(t, http.NotFoundHandler())
	user := ident.Owner{User: "recuser"}
	c.AddUser(user.User)
	c.AddUser("recadmin")
	project := ident.Owner{Project: c.AddProject("", "P", user.User)}
	for _, name := range []string{"rec-storage", "rec-cpu"} {
		c.categories[name] = &category{}
	}
	for _, o := range []ident.Owner{user, project} {
		for _, name := range []string{"rec-storage", "rec-cpu"} {
			if err := c.Allocate(o, name, 1000); err != nil {
				t.Fatal(err)
			}
		}
	}
	item := func(o ident.Owner, category, provider string, delta bool, usage int64, scope string) string {
		w := providerapi.WalletOwnerOf(o)
		return fmt.Sprintf(`{"isDeltaCharge": %t, "owner": {"type": %q, "username": %q, "projectId": %q}, "categoryIdV2": {"name": %q, "provider": %q},
			"usage": %d, "description": {"scope": %s, "description": null}}`, delta, w.Type, w.Username, w.ProjectID, category, provider, usage, scope)
	}
	for i, tc := range []struct {
		items  []string
		status int
		body   string
	}{
		{[]string{item(user, "rec-storage", "rec", false, 100, `"s"`)}, 200, `{"responses":[true]}`},
		{[]string{item(project, "rec-storage", "rec", false, 5, `"s"`), item(user, "rec-cpu", "rec", true, 60, `"job"`)}, 200, `{"responses":[true,true]}`},
		{[]string{item(user, "rec-cpu", "rec", true, -10, `"job"`)}, 200, `{"responses":[true]}`},
		{[]string{item(user, "rec-storage", "rec", false, 5000, `"s"`)}, 200, `{"responses":[false]}`},
		{[]string{item(user, "nope", "rec", false, 1, `"s"`)}, 403, "This category does not exist"},
		{[]string{item(user, "x", "other", false, 1, `"s"`)}, 403, "You cannot report usage for this product"},
		{[]string{item(project, "rec-storage", "rec", false, 6, `"s"`), item(ident.Owner{User: "nobody"}, "rec-storage", "rec", false, 1, `"s"`)}, 403, "This user/project does not exist"},
		{[]string{item(ident.Owner{Project: "none"}, "rec-storage", "rec", false, 1, `"s"`)}, 403, "This user/project does not exist"},
		{[]string{item(ident.Owner{User: "recadmin"}, "rec-storage", "rec", false, 1, `"s"`)}, 200, `{"responses":[false]}`},
		{[]string{item(user, "rec-storage", "rec", false, -1, `"s"`)}, 403, "Absolute usage cannot be negative"},
	} {
		status, body, err := post(t, srv.URL+"/api/accounting/v2/reportUsage", c.ProviderToken(), `{"items": [`+strings.Join(tc.items, ",")+`]}`)
		if err != nil || status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%d: %d %s, %v", i, status, body, err)
		}
	}
	// The first of two items stays recorded when the second is refused.
	if got := c.Usage(project, "rec-storage"); got != 6 {
		t.Errorf("the project uses %d", got)
	}
	if got, ok := c.ScopedUsage(user, "job"); !ok || got != 50 || c.Usage(user, "rec-storage") != 5000 {
		t.Errorf("%d, %v, %d", got, ok, c.Usage(user, "rec-storage"))
	}
	if !c.wallets[walletKey{user, "rec-storage"}].locked {
		t.Error("a wallet over its quota is not locked")
	}
}
