package products

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ucloud-im/internal/providerapi"
)

// Interval is the accounting period of a product; the empty value means a quota that is counted once.
type Interval string

// The intervals, spelled as in the configuration.
const (
	Once     Interval = ""
	Minutely Interval = "Minutely"
	Hourly   Interval = "Hourly"
	Daily    Interval = "Daily"
)

// frequency is Core's word for the interval of a storage product. Compute without interval would be by the minute.
func (i Interval) frequency() (string, bool) {
	f, ok := map[Interval]string{
		Once: providerapi.FrequencyOnce, Minutely: providerapi.FrequencyMinute,
		Hourly: providerapi.FrequencyHour, Daily: providerapi.FrequencyDay,
	}[i]
	return f, ok
}

// Payment is how a product is counted (contract 30 section 1, "Price").
type Payment struct {
	// Unit is what quota and usage are counted in, such as GB. For money it is left empty.
	Unit     string
	Interval Interval
	// Currency, such as DKK, makes it a product that is paid with money; Price is then in millionths.
	Currency string
	Price    int64
}

// Storage is a storage product: one file system of the configuration. It is its own category, by the same name.
type Storage struct {
	Name        string
	Description string // empty means "Storage"
	Payment     Payment
	Hidden      bool // not offered in grant applications
	FreeToUse   bool // no allocation needed, nothing is accounted
	ReadOnly    bool // Core blocks all changes
	UserDrives  bool // users may make drives, and rename and delete those
}

// Features are the abilities that depend on what this program serves. Announce only what is answered: Core forwards
// calls for announced features and refuses the others by itself.
type Features struct {
	Trash           bool
	StreamingSearch bool
	Terminal        bool

	// Jobs tells that jobs are taken; without it no machine has any feature, so that Core sends none.
	Jobs          bool
	Web, VNC      bool // sessions of jobs
	Logs          bool
	JobTerminal   bool
	TimeExtension bool
}

// Options describe the catalogue.
type Options struct {
	Provider string    // our provider id
	Storage  []Storage // services.fileSystems, in the order of the file
	Compute  []Compute // services.slurm.machines, in the order of the file
	Features Features
}

// Catalog holds the products of one configuration. It does not change; a reload makes another.
type Catalog struct {
	provider string
	storage  []Storage
	compute  []Compute
	features Features
}

// NewCatalog checks the options and makes a catalogue.
func NewCatalog(o Options) (*Catalog, error) {
	if o.Provider == "" {
		return nil, errors.New("products: no provider id")
	}
	seen := map[string]bool{}
	for _, s := range o.Storage {
		_, known := s.Payment.Interval.frequency()
		money := s.Payment.Currency != ""
		switch {
		case s.Name == "" || strings.ContainsFunc(s.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }):
			return nil, fmt.Errorf("products: %q cannot be the name of a product", s.Name)
		case seen[s.Name]:
			return nil, fmt.Errorf("products: %q is there twice", s.Name)
		case !known:
			return nil, fmt.Errorf("products: %s: unknown interval %q", s.Name, s.Payment.Interval)
		case money && s.Payment.Price <= 0:
			return nil, fmt.Errorf("products: %s: a price is needed", s.Name)
		case !money && s.Payment.Unit == "":
			return nil, fmt.Errorf("products: %s: a unit is needed", s.Name)
		}
		seen[s.Name] = true
	}
	for _, c := range o.Compute {
		if err := c.check(); err != nil {
			return nil, err
		}
		if seen[c.Category] {
			return nil, fmt.Errorf("products: %q is there twice", c.Category)
		}
		seen[c.Category] = true
	}
	return &Catalog{provider: o.Provider, storage: slices.Clone(o.Storage), compute: slices.Clone(o.Compute), features: o.Features}, nil
}

// Reference is the triple by which Core knows the storage product of a category. false: there is no such category.
func (c *Catalog) Reference(category string) (providerapi.ProductReference, bool) {
	for _, s := range c.storage {
		if s.Name == category {
			return c.reference(s), true
		}
	}
	return providerapi.ProductReference{}, false
}

// reference is the only place that puts the triple together: product name = category name (contract 30 section 1).
func (c *Catalog) reference(s Storage) providerapi.ProductReference {
	return providerapi.ProductReference{ID: s.Name, Category: s.Name, Provider: c.provider}
}

// Categories are the names of all categories, in order.
func (c *Catalog) Categories() []string {
	names := make([]string, 0, len(c.storage)+len(c.compute))
	for _, s := range c.storage {
		names = append(names, s.Name)
	}
	for _, m := range c.compute {
		names = append(names, m.Category)
	}
	return names
}

// Products are the products of one category as they are declared.
func (c *Catalog) Products(category string) []providerapi.Product {
	for _, s := range c.storage {
		if s.Name == category {
			return []providerapi.Product{c.product(s)}
		}
	}
	for _, m := range c.compute {
		if m.Category == category {
			return c.machines(m)
		}
	}
	return nil
}

// has tells whether the category is one of the catalogue.
func (c *Catalog) has(category string) bool { return slices.Contains(c.Categories(), category) }

func (c *Catalog) product(s Storage) providerapi.Product {
	frequency, _ := s.Payment.Interval.frequency()
	unit := providerapi.AccountingUnit{
		Name: s.Payment.Unit, NamePlural: s.Payment.Unit, DisplayFrequencySuffix: s.Payment.Interval != Once,
	}
	price := int64(1)
	if s.Payment.Currency != "" {
		unit = providerapi.AccountingUnit{Name: s.Payment.Currency, NamePlural: s.Payment.Currency, FloatingPoint: true}
		price = s.Payment.Price
	}
	description := s.Description
	if description == "" {
		description = "Storage"
	}
	ref := c.reference(s)
	return providerapi.Product{
		Type: strings.ToLower(providerapi.ProductTypeStorage),
		Category: providerapi.ProductCategory{
			Name: ref.Category, Provider: ref.Provider, ProductType: providerapi.ProductTypeStorage, AccountingUnit: unit,
			AccountingFrequency: frequency, FreeToUse: s.FreeToUse, AllowSubAllocations: true,
		},
		Name: ref.ID, Description: description, ProductType: providerapi.ProductTypeStorage, Price: price,
		Fraction: providerapi.Fraction{Numerator: 1, Denominator: 1}, HiddenInGrantApplications: s.Hidden,
	}
}

// StorageSupport answers files/collections/retrieveProducts. Access is decided by the file system, so nothing about access
// lists is offered, and nothing about drives where the provider alone makes them (contract 30 section 7).
func (c *Catalog) StorageSupport() []providerapi.FSSupport {
	all := make([]providerapi.FSSupport, 0, len(c.storage))
	for _, s := range c.storage {
		all = append(all, providerapi.FSSupport{
			Product: c.reference(s),
			Stats: providerapi.FSSupportStats{
				SizeInBytes: true, ModifiedAt: true, CreatedAt: true, AccessedAt: true,
				UnixPermissions: true, UnixOwner: true, UnixGroup: true,
			},
			Collection: providerapi.FSSupportCollection{
				UsersCanCreate: s.UserDrives, UsersCanRename: s.UserDrives, UsersCanDelete: s.UserDrives,
			},
			Files: providerapi.FSSupportFiles{
				TrashSupported: c.features.Trash && !s.ReadOnly, IsReadOnly: s.ReadOnly,
				StreamingSearchSupported: c.features.StreamingSearch, OpenInTerminal: c.features.Terminal,
			},
		})
	}
	return all
}

// hash identifies what is declared of a category, hidden flags included, which Core does not give back.
func hash(products []providerapi.Product) string {
	b, err := json.Marshal(products)
	if err != nil {
		return "" // never: plain values
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// conflicts tells in words what Core's category has otherwise than ours and would keep if we sent ours: unit,
// frequency, whether it is free, and the kind of product (contract 30 section 2).
func conflicts(ours, core providerapi.ProductCategory) []string {
	var out []string
	differ := func(what string, ours, core any) {
		if ours != core {
			out = append(out, fmt.Sprintf("%s is %v here and %v at Core", what, ours, core))
		}
	}
	differ("the unit", ours.AccountingUnit.Name, core.AccountingUnit.Name)
	differ("the plural of the unit", ours.AccountingUnit.NamePlural, core.AccountingUnit.NamePlural)
	differ("floatingPoint", ours.AccountingUnit.FloatingPoint, core.AccountingUnit.FloatingPoint)
	differ("displayFrequencySuffix", ours.AccountingUnit.DisplayFrequencySuffix, core.AccountingUnit.DisplayFrequencySuffix)
	differ("the frequency", ours.AccountingFrequency, core.AccountingFrequency)
	differ("freeToUse", ours.FreeToUse, core.FreeToUse)
	differ("the product type", ours.ProductType, core.ProductType)
	return out
}

// same tells whether Core's product is as ours, as far as Core keeps and returns it: hidden is not kept, and balances
// are filled for end users only.
func same(ours, core providerapi.Product) bool {
	for _, p := range []*providerapi.Product{&ours, &core} {
		if p.Fraction.Numerator <= 0 || p.Fraction.Denominator <= 0 {
			p.Fraction = providerapi.Fraction{Numerator: 1, Denominator: 1} // so does Core when it stores
		}
		p.HiddenInGrantApplications = false
		p.Usage, p.Balance, p.MaxUsableBalance, p.PricePerUnit = nil, 0, 0, 0
	}
	return ours == core
}
