package devcore

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Options configure a [Core]. The zero value of everything but Provider and ProviderURL is usable.
type Options struct {
	Provider    string // provider id
	ProviderURL string // where Core reaches the provider's gateway, no trailing slash
	PublicURL   string // where browsers reach Core; used in texts only

	Log          *slog.Logger
	PollInterval time.Duration     // manifest and product polls; 0 means 10 s
	CallTimeout  time.Duration     // one call of the provider; 0 means 5 s
	RetryPause   time.Duration     // between init and the repeated call; 0 means 500 ms
	DeathDelay   time.Duration     // how long a fatal transaction is "retried" before the connection is cut; 0 means 200 ms
	TokenLife    time.Duration     // of access tokens in both directions; 0 means 10 min
	Transport    http.RoundTripper // to the provider; nil means a transport of its own

	// SameProviderTransfers allows transfers within the provider, as Core does in its development mode.
	SameProviderTransfers bool

	// Signing makes it forward what users have signed, and tell browsers that the provider wants it, as Core once did. Whoever
	// is connected may then connect again, to upload the key of another browser.
	Signing bool

	// TakeOver makes it a Core in wrong hands, which forges requests on demand ([Core.Forge]).
	TakeOver bool

	// ConsoleKey is the password of every end user and opens the development calls. Without it any user of the machine
	// who can reach the port could act as any end user; "" is for tests.
	ConsoleKey string

	// FirstID is where ids of resources begin. A real Core never gives one twice; a simulator that forgets everything does,
	// and what a batch system remembers of earlier runs would be taken for jobs of this one.
	FirstID int

	// Key and RefreshToken let a demo keep its credentials over restarts; nil and "" mean new ones.
	Key          *rsa.PrivateKey
	RefreshToken string
}

// Violation is something that a provider must never do.
type Violation struct {
	At     time.Time `json:"at"`
	Call   string    `json:"call"`
	Reason string    `json:"reason"`
	Fatal  bool      `json:"fatal"` // a real Core process would have ended
}

// Core is the simulator. Its methods may be called concurrently.
type Core struct {
	opt    Options
	log    *slog.Logger
	key    *rsa.PrivateKey
	client *http.Client

	mu         sync.Mutex // guards everything below; never held during I/O
	refresh    string
	users      map[ident.UCloudUser]*user
	projects   map[ident.ProjectID]*project
	categories map[string]*category
	wallets    map[walletKey]*wallet
	usage      map[usageKey]int64
	drives     map[ident.DriveID]*providerapi.Drive
	byPGID     map[string]ident.DriveID
	nextID     int
	sessions   map[*eventSession]struct{}
	logins     map[string]ident.UCloudUser // access token of an end user
	violations []Violation
	support    polled
	calls      map[string]int // provider -> Core calls by path
	coreToken  cachedToken
	tasks      []providerapi.Task // by id, from 1
	jobs       jobStore

	captured      []Captured
	capturedSoFar int

	tasksChanged chan struct{} // closed and replaced at each change of a task
}

type user struct {
	name      ident.UCloudUser
	connected bool
}

type project struct {
	doc providerapi.Project
}

type category struct {
	doc      providerapi.ProductCategory
	products map[string]providerapi.Product
}

type walletKey struct {
	owner    ident.Owner
	category string
}

type wallet struct {
	quota, usage int64
	locked       bool
	updated      time.Time
}

// New makes a simulator with a fresh provider registration.
func New(o Options) (*Core, error) {
	if o.Provider == "" || o.ProviderURL == "" {
		return nil, fmt.Errorf("devcore: Provider and ProviderURL are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.PollInterval, 10*time.Second)
	setDefault(&o.CallTimeout, 5*time.Second)
	setDefault(&o.RetryPause, 500*time.Millisecond)
	setDefault(&o.DeathDelay, 200*time.Millisecond)
	setDefault(&o.TokenLife, 10*time.Minute)
	if o.Key == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, fmt.Errorf("devcore: make key: %w", err)
		}
		o.Key = key
	}
	if o.RefreshToken == "" {
		o.RefreshToken = randomHex(32)
	}
	return &Core{
		opt: o, log: o.Log.With("part", "devcore"), key: o.Key, refresh: o.RefreshToken,
		client: &http.Client{
			Transport:     o.Transport,
			Timeout:       o.CallTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		users: map[ident.UCloudUser]*user{}, projects: map[ident.ProjectID]*project{},
		categories: map[string]*category{}, wallets: map[walletKey]*wallet{}, usage: map[usageKey]int64{},
		drives: map[ident.DriveID]*providerapi.Drive{}, byPGID: map[string]ident.DriveID{}, nextID: max(3, o.FirstID),
		sessions: map[*eventSession]struct{}{}, logins: map[string]ident.UCloudUser{}, calls: map[string]int{},
		tasksChanged: make(chan struct{}), jobs: newJobStore(),
	}, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b)
}

// RefreshToken is what the provider puts into server.yml.
func (c *Core) RefreshToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refresh
}

// Key is the provider's private key, which a real Core never gives out. The demo stores it.
func (c *Core) Key() *rsa.PrivateKey { return c.key }

// PublicKey is the text for ucloud_crt.pem: bare base64 of the DER, one line (recording 01 section 7).
func (c *Core) PublicKey() string {
	der, err := x509.MarshalPKIXPublicKey(&c.key.PublicKey)
	if err != nil {
		panic("devcore: marshal an RSA public key: " + err.Error()) // cannot happen for a generated key
	}
	return base64.StdEncoding.EncodeToString(der)
}

// AddUser makes an end user known.
func (c *Core) AddUser(name ident.UCloudUser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[name] == nil {
		c.users[name] = &user{name: name}
	}
}

// AddProject makes a project with the given members, the first of whom is its PI. An empty id means a random UUID.
// The provider hears of it with its first allocation.
func (c *Core) AddProject(id ident.ProjectID, title string, members ...ident.UCloudUser) ident.ProjectID {
	now := time.Now()
	if id == "" {
		id = ident.ProjectID(uuid())
	}
	p := providerapi.Project{
		ID: id, CreatedAt: providerapi.MillisOf(now), ModifiedAt: providerapi.MillisOf(now),
		Specification: providerapi.ProjectSpecification{Title: title, CanConsumeResources: true},
	}
	group := providerapi.ProjectGroup{ID: uuid(), CreatedAt: providerapi.UnsetMillis}
	group.Specification.Project, group.Specification.Title = id, "All users"
	for i, m := range members {
		role := "USER"
		if i == 0 {
			role = "PI"
		}
		p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: m, Role: role})
		group.Status.Members = append(group.Status.Members, m)
		c.AddUser(m)
	}
	p.Status.Groups = providerapi.List[providerapi.ProjectGroup]{group}
	c.mu.Lock()
	c.projects[id] = &project{doc: p}
	c.mu.Unlock()
	return id
}

// SetMembers replaces the members of a project and sends the event.
func (c *Core) SetMembers(id ident.ProjectID, members ...ident.UCloudUser) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.projects[id]
	if p == nil {
		return fmt.Errorf("no project %s", id)
	}
	var list providerapi.List[providerapi.ProjectMember]
	var names providerapi.List[ident.UCloudUser]
	for i, m := range members {
		role := "USER"
		if i == 0 {
			role = "PI"
		}
		list = append(list, providerapi.ProjectMember{Username: m, Role: role})
		names = append(names, m)
		if c.users[m] == nil {
			c.users[m] = &user{name: m}
		}
	}
	p.doc.Status.Members = list
	if len(p.doc.Status.Groups) > 0 {
		// Snapshots that were handed out share the old slice: replace, do not modify.
		groups := append(providerapi.List[providerapi.ProjectGroup]{}, p.doc.Status.Groups...)
		groups[0].Status.Members = names
		p.doc.Status.Groups = groups
	}
	p.doc.ModifiedAt = max(providerapi.MillisOf(time.Now()), p.doc.ModifiedAt+1)
	c.announceProjectLocked(id)
	return nil
}

// Allocate gives an owner a quota in a category and sends the wallet event. The category must have been declared.
func (c *Core) Allocate(owner ident.Owner, categoryName string, quota int64) error {
	return c.setWallet(owner, categoryName, func(w *wallet) { w.quota = quota; w.locked = quota <= w.usage })
}

// SetLocked locks or unlocks a wallet and sends the event.
func (c *Core) SetLocked(owner ident.Owner, categoryName string, locked bool) error {
	return c.setWallet(owner, categoryName, func(w *wallet) { w.locked = locked })
}

func (c *Core) setWallet(owner ident.Owner, categoryName string, change func(*wallet)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.categories[categoryName] == nil {
		return fmt.Errorf("the provider has not declared the category %q", categoryName)
	}
	if owner.IsProject() && c.projects[owner.Project] == nil || !owner.IsProject() && c.users[owner.User] == nil {
		return fmt.Errorf("unknown owner %q", owner.Reference())
	}
	key := walletKey{owner, categoryName}
	w := c.wallets[key]
	if w == nil {
		w = &wallet{}
		c.wallets[key] = w
	}
	change(w)
	c.touchLocked(w)
	c.announceWalletLocked(key)
	return nil
}

// touchLocked notes that a wallet has changed.
func (c *Core) touchLocked(w *wallet) {
	if now := time.Now(); now.After(w.updated) {
		w.updated = now
	}
}

// Declared tells whether the provider has declared a category.
func (c *Core) Declared(categoryName string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.categories[categoryName] != nil
}

// Connected tells whether Core regards the user as connected.
func (c *Core) Connected(name ident.UCloudUser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.users[name] != nil && c.users[name].connected
}

// Drives lists the registered drives.
func (c *Core) Drives() []providerapi.Drive {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]providerapi.Drive, 0, len(c.drives))
	for _, d := range c.drives {
		out = append(out, *d)
	}
	return out
}

// Violations lists what the provider has done wrong so far.
func (c *Core) Violations() []Violation {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Violation(nil), c.violations...)
}

// Calls is how often the provider has called a path of Core.
func (c *Core) Calls(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[path]
}

func (c *Core) violate(call, reason string, fatal bool) {
	c.mu.Lock()
	c.violations = append(c.violations, Violation{At: time.Now(), Call: call, Reason: reason, Fatal: fatal})
	c.mu.Unlock()
	c.log.Error("the provider did what it must never do", "call", call, "reason", reason, "core_would_exit", fatal)
}

// uuid makes a random UUID (RFC 9562 version 4).
func uuid() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
