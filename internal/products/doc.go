// Package products knows what the provider sells: it builds the product descriptions from the configuration, declares
// them to UCloud/Core (contract 30 sections 1 and 2) and tells what each product can do (section 7).
//
// [Catalog] is the pure part, built once per configuration. The triple {id, category, provider} of a product is made in
// one place, [Catalog.Reference]; declarations, the support answer and the registration of drives all use it, because
// Core matches them byte by byte and takes an unknown product without complaint (contract 05 section C, rule 1).
//
// [Declarer] compares with Core and declares what is missing or different. A category whose unit, frequency or price
// model differs at Core is never sent: Core would keep the old one silently and every number would be wrong. That is
// an alarm for the operator; everything else goes on.
//
// Nothing at Core deletes a product, so a category that Core has once accepted stays usable. [Declarer.Declared] is
// the gate for everything that names a product to Core.
package products
