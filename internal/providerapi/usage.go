package providerapi

import "ucloud-im/internal/ident"

// CategoryReference names a product category (ProductCategoryIdV2 of the contract).
type CategoryReference struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
}

// UsageItem reports usage of an owner in a category (contract 30 section 3). With IsDeltaCharge false, which is all that
// we send, Usage is the absolute value of the scope, and sending it again changes nothing.
type UsageItem struct {
	IsDeltaCharge bool              `json:"isDeltaCharge"`
	Owner         WalletOwner       `json:"owner"`
	CategoryIDV2  CategoryReference `json:"categoryIdV2"`
	Usage         int64             `json:"usage"` // in the category's unit
	Description   UsageDescription  `json:"description"`
}

// UsageDescription says which part of an owner's usage is meant. Core keeps one total for each owner and scope, whatever
// the category.
type UsageDescription struct {
	Scope       *string `json:"scope"`
	Description *string `json:"description"`
}

// ProviderGift asks Core to grant a user something of ours (contract 30 section 6).
type ProviderGift struct {
	OwnerUsername ident.UCloudUser  `json:"ownerUsername"`
	Category      CategoryReference `json:"category"`
	Quota         int64             `json:"quota"` // in the category's unit
	ExpiresAt     *Millis           `json:"expiresAt"`
}
