package config

// Provider is who we are and where UCloud/Core is (contract 40 section 3).
type Provider struct {
	ID          Name        `key:"id" need:"yes" reload:"restart" doc:"Identifier registered at UCloud/Core. It appears in URL paths (/ucloud/<id>/…); changing it after the first start is an error unless the database is empty. Not aau, ucloud, k8s or k8: Core treats those as always connected."`
	Hosts       Hosts       `key:"hosts" need:"yes" doc:"Addresses of UCloud/Core and of this provider."`
	Core        Core        `key:"core" doc:"How UCloud/Core is called and how its tokens are verified."`
	Maintenance Maintenance `key:"maintenance" doc:"Maintenance mode. The run-time switch of the command line wins until it is cleared."`
	Branding    *Branding   `key:"branding" defaultDoc:"none" doc:"How the provider presents itself in the web interface."`
}

// Hosts are the four addresses. Outside development the public ones are https.
type Hosts struct {
	UCloud       Host `key:"ucloud" need:"yes" doc:"Address at which this module reaches UCloud/Core. Plain http needs development.enabled."`
	UCloudPublic Host `key:"ucloudPublic" defaultDoc:"= ucloud" doc:"Address of UCloud/Core for browsers (redirects after connecting). https outside development."`
	Self         Host `key:"self" need:"yes" doc:"Address at which UCloud/Core reaches the gateway."`
	SelfPublic   Host `key:"selfPublic" defaultDoc:"= self" doc:"Address of the gateway for browsers and other providers. https outside development."`
}

// Core is the relation to UCloud/Core.
type Core struct {
	JWTIssuer string `key:"jwtIssuer" default:"cloud.sdu.dk" flags:"nonempty" doc:"Expected issuer of tokens from UCloud/Core."`
	// Certificates is what the operator listed; use [Core.KeyFiles].
	Certificates   []Path        `key:"certificates" flags:"relative,nonempty" defaultDoc:"the first of ucloud_key.pub, ucloud_crt.pem in the configuration directory that exists" doc:"Public keys of UCloud/Core; several make a rotation possible. PEM, DER or bare base64, RSA of 2048 bits or more."`
	ClockSkew      Duration      `key:"clockSkew" default:"60s" max:"5m" zero:"yes" doc:"Allowed difference of clocks when tokens are verified."`
	RequestTimeout Duration      `key:"requestTimeout" default:"10s" max:"10m" doc:"Time limit of one call to UCloud/Core."`
	Retry          CoreRetry     `key:"retry" doc:"Back-off of calls to UCloud/Core. A start waits for Core instead of failing."`
	CAFile         Path          `key:"caFile" exists:"file" defaultDoc:"the system's trust store" doc:"Extra trust anchors for UCloud/Core, PEM."`
	SignedIntents  SignedIntents `key:"signedIntents" doc:"Requests signed by the user's browser."`

	keyFiles []string // resolved when the configuration is loaded
}

// KeyFiles are the absolute paths of the public keys of UCloud/Core, at least one.
func (c Core) KeyFiles() []string { return c.keyFiles }

// CoreRetry is the back-off of calls to UCloud/Core.
type CoreRetry struct {
	Initial  Duration `key:"initial" default:"1s" doc:"First pause."`
	Max      Duration `key:"max" default:"60s" doc:"Longest pause."`
	Deadline Duration `key:"deadline" default:"0" zero:"yes" doc:"When to give up; 0 = never."`
}

// The modes of signed intents.
const (
	IntentsOff     = "off"
	IntentsLog     = "log"
	IntentsRequire = "require"
)

// SignedIntents is the policy for the header UCloud-Signed-Intent (contract 01 section 7).
type SignedIntents struct {
	Mode   string   `key:"mode" enum:"off,log,require" default:"off" doc:"log verifies, counts and reports what require would refuse, and lets it pass; require refuses wrong and missing intents with 482. Today's Core forwards none, so require stops all its calls."`
	MaxAge Duration `key:"maxAge" default:"60s" max:"1h" doc:"Longest life of an intent (exp - iat). Clock leeway is clockSkew."`
	Exempt []string `key:"exempt" default:"[]" doc:"Names of calls that need no intent; wins over everything else."`

	Users Map[string] `key:"users" keys:"text" enum:"off,log,require" flags:"added" defaultDoc:"{}" doc:"Modes for single users, by UCloud username, instead of mode."`
	Calls Map[string] `key:"calls" keys:"text" enum:"off,log,require" flags:"added" defaultDoc:"{}" doc:"Modes for single calls, by their name at UCloud such as jobs.create, instead of mode. Where a user has one too, the stricter counts."`

	MaxKeysPerUser int      `key:"maxKeysPerUser" default:"10" min:"1" max:"100" doc:"Signing keys that a user may have, one for each browser."`
	KeyLifetime    Duration `key:"keyLifetime" default:"180d" min:"1h" max:"3650d" doc:"After it the user has to connect that browser again."`
}

// Maintenance is the configured maintenance mode.
type Maintenance struct {
	Enabled   bool     `key:"enabled" default:"false" doc:"Refuse users who are not on the list."`
	AllowList []string `key:"allowList" default:"[]" doc:"UCloud usernames (Name#1234) that may still work. No effect unless enabled."`
	Message   string   `key:"message" defaultDoc:"a generic sentence" doc:"Text for users."`
}

// Branding is how the provider presents itself. Texts are read from files of at most 2 MiB.
type Branding struct {
	Title               string               `key:"title" defaultDoc:"empty" doc:"Name of the provider."`
	ShortTitle          string               `key:"shortTitle" defaultDoc:"empty" doc:"Short name."`
	ShortDescription    string               `key:"shortDescription" defaultDoc:"empty" doc:"One sentence."`
	Description         Path                 `key:"description" exists:"file" defaultDoc:"none" doc:"Markdown file."`
	URL                 URL                  `key:"url" defaultDoc:"none" doc:"Home page."`
	Logo                Path                 `key:"logo" exists:"file" defaultDoc:"none" doc:"Image: png, jpeg, svg or webp."`
	Sections            []BrandingSection    `key:"sections" default:"[]" doc:"Sections of the provider's page."`
	ProductDescriptions []ProductDescription `key:"productDescription" default:"[]" doc:"Texts for product categories."`
}

// BrandingSection is a text with an optional image.
type BrandingSection struct {
	Description Path `key:"description" need:"yes" exists:"file" doc:"Markdown file."`
	Image       Path `key:"image" exists:"file" defaultDoc:"none" doc:"Image: png, jpeg, svg or webp."`
}

// ProductDescription is the text for one product category.
type ProductDescription struct {
	Category         string           `key:"category" need:"yes" doc:"A configured product category (X-15)."`
	ShortDescription string           `key:"shortDescription" defaultDoc:"empty" doc:"One sentence."`
	Section          *BrandingSection `key:"section" defaultDoc:"none" doc:"Text with an image."`
}
