package products

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
)

// standard is the category of the contract's examples.
func standard() Compute {
	return Compute{
		Category: "standard-cpu", Payment: Payment{Unit: "Core", Interval: Hourly},
		Machines: []Machine{{
			Name: "standard-cpu-16-vcpu", Description: "A compute product", CPU: 16, CPUModel: "AMD EPYC 9354",
			MemoryGB: 64, MemoryModel: "DDR5-4800", Price: 16,
		}},
	}
}

func computeCatalog(t *testing.T, f Features, c ...Compute) *Catalog {
	t.Helper()
	all, err := NewCatalog(Options{Provider: "hpc-example", Compute: c, Features: f, Storage: []Storage{gb("storage")}})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameAs(t *testing.T, file, part string, got any) []byte {
	t.Helper()
	raw, err := os.ReadFile("../providerapi/testdata/examples/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var ex map[string]json.RawMessage
	body, bad := json.Marshal(got)
	var a, b any
	if err := errors.Join(bad, json.Unmarshal(raw, &ex), json.Unmarshal(ex[part], &a), json.Unmarshal(body, &b)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
	return body
}

func TestMachinesAreTheContracts(t *testing.T) {
	t.Parallel()
	c := computeCatalog(t, Features{Jobs: true, Web: true, VNC: true, Logs: true, JobTerminal: true}, standard())
	body := sameAs(t, "core/products.v2.create--compute.json", "request",
		providerapi.BulkRequest[providerapi.Product]{Items: c.Products("standard-cpu")})
	apischema.Core(t).Request(t, "products.v2.create", body)

	body = sameAs(t, "provider/jobs.retrieveProducts.json", "response",
		providerapi.BulkResponse[providerapi.JobSupport]{Responses: c.JobSupport()})
	apischema.Provider(t).Response(t, "jobs.retrieveProducts", body)
	if got := c.JobSupport()[0].Product; got != c.Products("standard-cpu")[0].Reference() {
		t.Errorf("the triples differ: %+v", got)
	}
	if got := strings.Join(c.Categories(), " "); got != "storage standard-cpu" {
		t.Errorf("categories %q", got)
	}
	if _, ok := c.Reference("standard-cpu"); ok {
		t.Error("a drive could be made in a category of machines")
	}
}

// Core sends a job only to a machine with features, so that a server without jobs must announce none.
func TestWhatIsNotServedIsNotAnnounced(t *testing.T) {
	t.Parallel()
	if s := computeCatalog(t, Features{Web: true, Logs: true}, standard()).JobSupport(); len(s) != 0 {
		t.Errorf("announced without jobs: %+v", s)
	}
	s := computeCatalog(t, Features{Jobs: true}, standard()).JobSupport()[0]
	if s.Native != (providerapi.JobBackendSupport{Enabled: true}) || s.Docker.Enabled || s.VirtualMachine.Enabled {
		t.Errorf("announced: %+v", s)
	}
	s = computeCatalog(t, Features{Jobs: true, TimeExtension: true}, standard()).JobSupport()[0]
	if s.Native != (providerapi.JobBackendSupport{Enabled: true, TimeExtension: true}) {
		t.Errorf("announced: %+v", s)
	}
}

func TestMachinePayments(t *testing.T) {
	t.Parallel()
	money := standard()
	money.Payment = Payment{Currency: "DKK", Interval: Minutely}
	money.Machines[0].Price = 1_500_000
	p := computeCatalog(t, Features{}, money).Products("standard-cpu")[0]
	want := providerapi.AccountingUnit{Name: "DKK", NamePlural: "DKK", FloatingPoint: true}
	if p.Category.AccountingUnit != want || p.Price != 1_500_000 || p.Category.AccountingFrequency != providerapi.FrequencyMinute {
		t.Errorf("money: %+v", p)
	}
	free := standard()
	free.Payment.Interval, free.FreeToUse, free.Hidden = Once, true, true
	p = computeCatalog(t, Features{}, free).Products("standard-cpu")[0]
	if !p.Category.FreeToUse || !p.HiddenInGrantApplications || p.Category.AccountingFrequency != providerapi.FrequencyMinute {
		t.Errorf("free: %+v", p)
	}
	shared := standard()
	shared.Machines[0].GPU, shared.Machines[0].GPUModel = 1, "A100"
	shared.Machines[0].Fraction = providerapi.Fraction{Numerator: 1, Denominator: 7}
	if p = computeCatalog(t, Features{}, shared).Products("standard-cpu")[0]; p.GPU != 1 || p.GPUModel != "A100" || p.Fraction.Denominator != 7 {
		t.Errorf("shared device: %+v", p)
	}
}

func TestFindMachine(t *testing.T) {
	t.Parallel()
	c := computeCatalog(t, Features{}, standard())
	for _, ref := range []providerapi.ProductReference{
		{ID: "standard-cpu-16-vcpu", Category: "standard-cpu", Provider: "other"},
		{ID: "standard-cpu-16-vcpu", Category: "storage", Provider: "hpc-example"},
		{ID: "storage", Category: "storage", Provider: "hpc-example"},
		{ID: "standard-cpu-17-vcpu", Category: "standard-cpu", Provider: "hpc-example"},
	} {
		if _, _, ok := c.Machine(ref); ok {
			t.Errorf("found %+v", ref)
		}
	}
	category, m, ok := c.Machine(providerapi.ProductReference{ID: "standard-cpu-16-vcpu", Category: "standard-cpu", Provider: "hpc-example"})
	if !ok || category.Category != "standard-cpu" || m.CPU != 16 {
		t.Errorf("%+v %+v %v", category, m, ok)
	}
}

func TestMachinesThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(c *Compute){
		"no category":     func(c *Compute) { c.Category = "" },
		"blank":           func(c *Compute) { c.Machines[0].Name = "a b" },
		"name of storage": func(c *Compute) { c.Category = "storage" },
		"no unit":         func(c *Compute) { c.Payment.Unit = "" },
		"interval":        func(c *Compute) { c.Payment.Interval = "Yearly" },
		"no machines":     func(c *Compute) { c.Machines = nil },
		"twice":           func(c *Compute) { c.Machines = append(c.Machines, c.Machines[0]) },
		"no cores":        func(c *Compute) { c.Machines[0].CPU = 0 },
		"no memory":       func(c *Compute) { c.Machines[0].MemoryGB = 0 },
		"negative price":  func(c *Compute) { c.Machines[0].Price = -1 },
	} {
		c := standard()
		spoil(&c)
		if _, err := NewCatalog(Options{Provider: "hpc-example", Storage: []Storage{gb("storage")}, Compute: []Compute{c}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
