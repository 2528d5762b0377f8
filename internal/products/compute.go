package products

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ucloud-im/internal/providerapi"
)

// Compute is a category of machines: one partition and QoS, sold in slices.
type Compute struct {
	Category  string
	Payment   Payment // Unit is Core, GPU or GB; empty for money. Interval may be left empty: by the minute. Price is not used
	Hidden    bool    // not offered in grant applications
	FreeToUse bool    // no allocation needed, nothing is accounted
	Machines  []Machine
}

// Machine is a slice: what one node of a job gets.
type Machine struct {
	Name        string
	Description string // empty means "Compute"
	CPU         int
	CPUModel    string
	MemoryGB    int
	MemoryModel string
	GPU         int
	GPUModel    string
	Price       int64 // units of the machine, or for money millionths in one interval
	Fraction    providerapi.Fraction
}

// check tells what is wrong with a category.
func (m Compute) check() error {
	_, known := m.Payment.Interval.frequency()
	money := m.Payment.Currency != ""
	switch {
	case !named(m.Category):
		return fmt.Errorf("products: %q cannot be the name of a category", m.Category)
	case !known:
		return fmt.Errorf("products: %s: unknown interval %q", m.Category, m.Payment.Interval)
	case !money && m.Payment.Unit == "":
		return fmt.Errorf("products: %s: a unit is needed", m.Category)
	case len(m.Machines) == 0:
		return fmt.Errorf("products: %s: it has no machines", m.Category)
	}
	for i, s := range m.Machines {
		var err error
		switch {
		case !named(s.Name):
			err = fmt.Errorf("%q cannot be the name of a product", s.Name)
		case slices.ContainsFunc(m.Machines[:i], func(o Machine) bool { return o.Name == s.Name }):
			err = fmt.Errorf("%q is there twice", s.Name)
		case s.CPU <= 0 || s.MemoryGB <= 0 || s.GPU < 0:
			err = fmt.Errorf("%s has no cores or no memory", s.Name)
		case s.Price < 0: // 0 is the price of a machine without GPUs where GPUs are counted
			err = errors.New(s.Name + " has a negative price")
		}
		if err != nil {
			return fmt.Errorf("products: %s: %w", m.Category, err)
		}
	}
	return nil
}

func named(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// machines are the products of a category of machines as they are declared.
func (c *Catalog) machines(m Compute) []providerapi.Product {
	frequency, _ := m.Payment.Interval.frequency()
	if m.Payment.Interval == Once {
		frequency = providerapi.FrequencyMinute
	}
	unit := providerapi.AccountingUnit{Name: m.Payment.Unit, NamePlural: m.Payment.Unit, DisplayFrequencySuffix: true}
	if m.Payment.Currency != "" {
		unit = providerapi.AccountingUnit{Name: m.Payment.Currency, NamePlural: m.Payment.Currency, FloatingPoint: true}
	}
	category := providerapi.ProductCategory{
		Name: m.Category, Provider: c.provider, ProductType: providerapi.ProductTypeCompute, AccountingUnit: unit,
		AccountingFrequency: frequency, FreeToUse: m.FreeToUse, AllowSubAllocations: true,
	}
	all := make([]providerapi.Product, 0, len(m.Machines))
	for _, s := range m.Machines {
		description := s.Description
		if description == "" {
			description = "Compute"
		}
		fraction := s.Fraction
		if fraction.Numerator <= 0 || fraction.Denominator <= 0 {
			fraction = providerapi.Fraction{Numerator: 1, Denominator: 1}
		}
		all = append(all, providerapi.Product{
			Type: strings.ToLower(providerapi.ProductTypeCompute), Category: category, Name: s.Name, Description: description,
			ProductType: providerapi.ProductTypeCompute, Price: s.Price, Fraction: fraction, HiddenInGrantApplications: m.Hidden,
			CPU: s.CPU, CPUModel: s.CPUModel, MemoryInGigs: s.MemoryGB, MemoryModel: s.MemoryModel, GPU: s.GPU, GPUModel: s.GPUModel,
		})
	}
	return all
}

// Machine is the slice that Core means, with its category. false: there is no such machine.
func (c *Catalog) Machine(ref providerapi.ProductReference) (Compute, Machine, bool) {
	if ref.Provider != c.provider {
		return Compute{}, Machine{}, false
	}
	for _, m := range c.compute {
		for _, s := range m.Machines {
			if m.Category == ref.Category && s.Name == ref.ID {
				return m, s, true
			}
		}
	}
	return Compute{}, Machine{}, false
}

// JobSupport answers jobs/retrieveProducts, one entry per machine (contract 20 section 2.7). Jobs are programs on the
// machines of the site, never containers.
func (c *Catalog) JobSupport() []providerapi.JobSupport {
	if !c.features.Jobs {
		return nil
	}
	f := c.features
	var all []providerapi.JobSupport
	for _, m := range c.compute {
		for _, s := range m.Machines {
			all = append(all, providerapi.JobSupport{
				Product: providerapi.ProductReference{ID: s.Name, Category: m.Category, Provider: c.provider},
				Native: providerapi.JobBackendSupport{
					Enabled: true, Web: f.Web, VNC: f.VNC, Logs: f.Logs, Terminal: f.JobTerminal, TimeExtension: f.TimeExtension,
				},
			})
		}
	}
	return all
}
