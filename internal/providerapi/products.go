package providerapi

// ProductReference names a product: ID is the product's name.
type ProductReference struct {
	ID       string `json:"id"`
	Category string `json:"category"`
	Provider string `json:"provider"`
}

// Product types (contract 30 section 1).
const (
	ProductTypeStorage = "STORAGE"
	ProductTypeCompute = "COMPUTE"
)

// Accounting frequencies.
const (
	FrequencyOnce   = "ONCE"
	FrequencyMinute = "PERIODIC_MINUTE"
	FrequencyHour   = "PERIODIC_HOUR"
	FrequencyDay    = "PERIODIC_DAY"
)

// AccountingUnit is the unit in which quota and usage of a category are counted.
type AccountingUnit struct {
	Name                   string `json:"name"`
	NamePlural             string `json:"namePlural"`
	FloatingPoint          bool   `json:"floatingPoint"`
	DisplayFrequencySuffix bool   `json:"displayFrequencySuffix"`
}

// ProductCategory is what quota and usage belong to.
type ProductCategory struct {
	Name                string         `json:"name,omitempty"`
	Provider            string         `json:"provider,omitempty"`
	ProductType         string         `json:"productType,omitempty"`
	AccountingUnit      AccountingUnit `json:"accountingUnit"`
	AccountingFrequency string         `json:"accountingFrequency,omitempty"`
	FreeToUse           bool           `json:"freeToUse,omitempty"`
	AllowSubAllocations bool           `json:"allowSubAllocations,omitempty"`
}

// Fraction is the part of a device that a product stands for; 1/1 as a rule.
type Fraction struct {
	Numerator   int `json:"numerator"`
	Denominator int `json:"denominator"`
}

// Product is a product with its category (ProductV2 of the contract).
type Product struct {
	Type                      string          `json:"type"` // lower-case form of ProductType
	Category                  ProductCategory `json:"category"`
	Name                      string          `json:"name"`
	Description               string          `json:"description"`
	ProductType               string          `json:"productType"`
	Price                     int64           `json:"price"`
	Fraction                  Fraction        `json:"fraction"`
	HiddenInGrantApplications bool            `json:"hiddenInGrantApplications"`
	Usage                     *int64          `json:"usage"`
	CPU                       int             `json:"cpu,omitempty"`
	CPUModel                  string          `json:"cpuModel,omitempty"`
	MemoryInGigs              int             `json:"memoryInGigs,omitempty"`
	MemoryModel               string          `json:"memoryModel,omitempty"`
	GPU                       int             `json:"gpu,omitempty"`
	GPUModel                  string          `json:"gpuModel,omitempty"`
	Balance                   int64           `json:"balance"`
	MaxUsableBalance          int64           `json:"maxUsableBalance"`
	PricePerUnit              int64           `json:"pricePerUnit"`
}

// Reference names the product.
func (p Product) Reference() ProductReference {
	return ProductReference{ID: p.Name, Category: p.Category.Name, Provider: p.Category.Provider}
}

// FSSupport is the feature declaration of a storage product (contract 12 section 1.2).
type FSSupport struct {
	Product    ProductReference    `json:"product"`
	Stats      FSSupportStats      `json:"stats"`
	Collection FSSupportCollection `json:"collection"`
	Files      FSSupportFiles      `json:"files"`
}

// FSSupportStats tells which properties of a file are known.
type FSSupportStats struct {
	SizeInBytes                  bool `json:"sizeInBytes"`
	SizeIncludingChildrenInBytes bool `json:"sizeIncludingChildrenInBytes"`
	Visualization                bool `json:"visualization"`
	ModifiedAt                   bool `json:"modifiedAt"`
	CreatedAt                    bool `json:"createdAt"`
	AccessedAt                   bool `json:"accessedAt"`
	UnixPermissions              bool `json:"unixPermissions"`
	UnixOwner                    bool `json:"unixOwner"`
	UnixGroup                    bool `json:"unixGroup"`
}

// FSSupportCollection tells what users may do with drives.
type FSSupportCollection struct {
	ACLModifiable  bool `json:"aclModifiable"`
	UsersCanCreate bool `json:"usersCanCreate"`
	UsersCanDelete bool `json:"usersCanDelete"`
	UsersCanRename bool `json:"usersCanRename"`
}

// FSSupportFiles tells what users may do with files.
type FSSupportFiles struct {
	ACLModifiable            bool `json:"aclModifiable"`
	TrashSupported           bool `json:"trashSupported"`
	IsReadOnly               bool `json:"isReadOnly"`
	SearchSupported          bool `json:"searchSupported"`
	StreamingSearchSupported bool `json:"streamingSearchSupported"`
	SharesSupported          bool `json:"sharesSupported"`
	OpenInTerminal           bool `json:"openInTerminal"`
}

// JobSupport is the feature declaration of a compute product.
type JobSupport struct {
	Product        ProductReference  `json:"product"`
	Docker         JobBackendSupport `json:"docker"`
	VirtualMachine JobBackendSupport `json:"virtualMachine"`
	Native         JobBackendSupport `json:"native"`
	QueueStatus    *string           `json:"queueStatus"`
}

// JobBackendSupport is the support of one kind of application.
type JobBackendSupport struct {
	Enabled        bool `json:"enabled,omitempty"`
	Web            bool `json:"web,omitempty"`
	VNC            bool `json:"vnc,omitempty"`
	Logs           bool `json:"logs,omitempty"`
	Terminal       bool `json:"terminal,omitempty"`
	Peers          bool `json:"peers,omitempty"`
	TimeExtension  bool `json:"timeExtension,omitempty"`
	BindLinkToPort bool `json:"bindLinkToPort,omitempty"`
	Suspension     bool `json:"suspension,omitempty"`
}

// Branding is what Core shows about the provider (contract 33 section 4).
type Branding struct {
	ID                  string                      `json:"id"`
	Title               string                      `json:"title"`
	ShortTitle          string                      `json:"shortTitle"`
	ShortDescription    string                      `json:"shortDescription"`
	Description         string                      `json:"description"`
	URL                 string                      `json:"url"`
	Logo                *string                     `json:"logo"`
	Sections            List[BrandingSection]       `json:"sections"`
	ProductDescriptions List[BrandingProductDetail] `json:"productDescription"`
}

// BrandingSection is a text with an optional image.
type BrandingSection struct {
	Description string  `json:"description"`
	Image       *string `json:"image"`
}

// BrandingProductDetail describes a product category.
type BrandingProductDetail struct {
	Category         string          `json:"category"`
	ShortDescription string          `json:"shortDescription"`
	Section          BrandingSection `json:"section"`
}
