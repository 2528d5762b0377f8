package slurm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ucloud-im/internal/failure"
)

// Account is an account of Slurm.
type Account struct {
	Name, Organization string
}

// Association lets a user submit jobs for an account. That of the account itself has no user, and carries its limits.
type Association struct {
	Cluster, Account, User, Partition, Parent string
	Fairshare                                 int64 // 0 if it is that of the parent
	GrpTRESMins                               TRES
	MaxJobs, MaxSubmitJobs, GrpSubmitJobs     *int64 // nil: no limit
	QoS                                       []string
	DefaultQoS                                string
}

// AssociationQuery restricts a listing of associations. All lists that are not nil have to match.
type AssociationQuery struct {
	Accounts []string
	Users    []string
}

// QoS is a quality of service.
type QoS struct {
	Name     string
	Priority int64
}

// Share is what an association has used since the beginning. That of the account itself has no user, and includes those
// of its users and of the accounts below it (contract 22 section 7.2).
type Share struct {
	Account, User string
	Shares        int64 // 0 if they are those of the parent
	RawUsage      int64
	GrpTRESMins   TRES // limits
	GrpTRESRaw    TRES // used, in minutes of each resource
}

// Change is a setting of an account, such as {"GrpTRESMins", "billing=600"}. -1 takes a limit away.
type Change struct{ Key, Value string }

// WithClusterName is the same client for changes and associations of one cluster, where a slurmdbd serves several.
func (c *Client) WithClusterName(name string) *Client {
	copied := *c
	copied.cluster = name
	return &copied
}

// clusterArgs restrict a command of sacctmgr to the cluster.
func (c *Client) clusterArgs() []string {
	if c.cluster == "" {
		return nil
	}
	return []string{"cluster=" + c.cluster}
}

// table runs a command that prints a header and rows with '|' between the fields, none of which users choose.
func (c *Client) table(ctx context.Context, program string, args []string, header string, row func(f []string) error) error {
	out, err := c.output(ctx, command{program: program, args: args})
	if err != nil {
		return classify(err, "list its accounts")
	}
	return parseTable(program, out, header, row)
}

func parseTable(program, out, header string, row func(f []string) error) error {
	first, rest, whole := strings.Cut(out, "\n")
	if first != header || !whole {
		return fmt.Errorf("%s: %w", program, noHeader(nil))
	}
	columns := strings.Count(header, "|") + 1
	for rest != "" {
		var line string
		if line, rest, whole = strings.Cut(rest, "\n"); !whole {
			return fmt.Errorf("%s: %w: the last row is not whole", program, ErrIncomplete)
		}
		f := strings.Split(line, "|")
		if len(f) != columns {
			return fmt.Errorf("%s: %w: %q", program, ErrIncomplete, cut(line))
		}
		if err := row(f); err != nil {
			return fmt.Errorf("%s: %w: %w", program, ErrIncomplete, err)
		}
	}
	return nil
}

// Accounts tells which of the accounts exist, or all that do. Names are compared in small letters, as Slurm does.
func (c *Client) Accounts(ctx context.Context, names ...string) ([]Account, error) {
	args := []string{"-P", "show", "account", "format=Account,Organization"}
	if names != nil {
		list, err := joinNames(names)
		if err != nil {
			return nil, err
		}
		args = append(args, "where", "name="+list)
	}
	var all []Account
	err := c.table(ctx, "sacctmgr", args, "Account|Org", func(f []string) error {
		all = append(all, Account{Name: f[0], Organization: f[1]})
		return nil
	})
	return all, err
}

const associationHeader = "Cluster|Account|User|Partition|ParentName|Share|GrpTRESMins|MaxJobs|MaxSubmit|GrpSubmit|QOS|Def QOS"

// Associations tells the associations that match, those of accounts themselves included.
func (c *Client) Associations(ctx context.Context, q AssociationQuery) ([]Association, error) {
	args := []string{"-P", "show", "associations", "format=Cluster,Account,User,Partition,ParentName,Share,GrpTRESMins,MaxJobs,MaxSubmit,GrpSubmit,QOS,DefaultQOS"}
	where := c.clusterArgs()
	for _, option := range []struct {
		name   string
		values []string
	}{{"account=", q.Accounts}, {"user=", q.Users}} {
		if option.values == nil {
			continue
		}
		list, err := joinNames(option.values)
		if err != nil {
			return nil, err
		}
		where = append(where, option.name+list)
	}
	if len(where) > 0 {
		args = append(append(args, "where"), where...)
	}
	var all []Association
	err := c.table(ctx, "sacctmgr", args, associationHeader, func(f []string) error {
		a, err := association(f)
		all = append(all, a)
		return err
	})
	return all, err
}

func association(f []string) (Association, error) {
	a := Association{Cluster: f[0], Account: f[1], User: f[2], Partition: f[3], Parent: f[4], QoS: nameList(f[10]), DefaultQoS: f[11]}
	var errs [5]error
	a.Fairshare, errs[0] = shareCount(f[5])
	a.GrpTRESMins, errs[1] = ParseTRES(f[6])
	a.MaxJobs, errs[2] = limit(f[7])
	a.MaxSubmitJobs, errs[3] = limit(f[8])
	a.GrpSubmitJobs, errs[4] = limit(f[9])
	return a, errors.Join(errs[:]...)
}

func limit(s string) (*int64, error) {
	if s == "" {
		return nil, nil
	}
	n, err := digits(s)
	return &n, err
}

func shareCount(s string) (int64, error) {
	if s == "" || s == "parent" {
		return 0, nil
	}
	return digits(s)
}

const shareHeader = "Account|User|RawShares|RawUsage|GrpTRESMins|GrpTRESRaw"

// Shares tells what accounts have used: those named, or all. It asks slurmctld, which knows at once what slurmdbd learns
// later. The numbers go down only if somebody resets them.
func (c *Client) Shares(ctx context.Context, accounts ...string) ([]Share, error) {
	args := []string{"-P", "-a", "-o", "Account,User,RawShares,RawUsage,GrpTRESMins,GrpTRESRaw"}
	if accounts != nil {
		list, err := joinNames(accounts)
		if err != nil {
			return nil, err
		}
		args = append(args, "-A", list)
	}
	var all []Share
	err := c.table(ctx, "sshare", args, shareHeader, func(f []string) error {
		s, err := share(f)
		all = append(all, s)
		return err
	})
	return all, err
}

func share(f []string) (Share, error) {
	s := Share{Account: strings.TrimLeft(f[0], " "), User: f[1]} // the tree is drawn by spaces
	if s.Account == "" {
		return s, errors.New("a row without an account")
	}
	var errs [4]error
	s.Shares, errs[0] = shareCount(f[2])
	if f[3] != "" {
		s.RawUsage, errs[1] = digits(f[3])
	}
	s.GrpTRESMins, errs[2] = rawTRES(f[4])
	s.GrpTRESRaw, errs[3] = rawTRES(f[5])
	return s, errors.Join(errs[:]...)
}

// rawTRES parses resources whose numbers have no unit: what mem has are minutes of megabytes.
func rawTRES(s string) (TRES, error) {
	if s == "" {
		return nil, nil
	}
	out := TRES{}
	for part := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		n, err := parseAmount(value, false)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("%q is no list of resources", cut(s))
		}
		out[name] = n
	}
	return out, nil
}

// QoS tells the qualities of service.
func (c *Client) QoS(ctx context.Context) ([]QoS, error) {
	var all []QoS
	err := c.table(ctx, "sacctmgr", []string{"-P", "show", "qos", "format=Name,Priority"}, "Name|Priority", func(f []string) error {
		n, err := digits(f[1])
		all = append(all, QoS{Name: f[0], Priority: n})
		return err
	})
	return all, err
}

// AdminLevel is what a user may do with Slurm: "None", "Operator" or "Administrator". It is empty if Slurm does not know
// the user.
func (c *Client) AdminLevel(ctx context.Context, user string) (string, error) {
	if !validName(user) {
		return "", fmt.Errorf("%q cannot be a user of Slurm", cut(user))
	}
	level := ""
	args := []string{"-P", "show", "user", "format=User,AdminLevel", "where", "name=" + user}
	err := c.table(ctx, "sacctmgr", args, "User|Admin", func(f []string) error {
		level = f[1]
		return nil
	})
	return level, err
}

// AccountSpec is an account to create.
type AccountSpec struct {
	Name         string
	Parent       string   // empty: below root
	QoS          []string // empty: as the parent
	DefaultQoS   string
	Description  string // letters, digits, spaces and . _ - only
	Organization string
}

var plainText = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9._ -]{1,100}$`) })

// CreateAccount makes an account. One that exists already is left as it is, and no error.
func (c *Client) CreateAccount(ctx context.Context, s AccountSpec) error {
	if !validName(s.Name) {
		return failure.New(failure.Invalid, "%q cannot be the name of a Slurm account", cut(s.Name))
	}
	args := append([]string{"-i", "create", "account", "name=" + s.Name}, c.clusterArgs()...)
	for _, option := range []struct{ key, value string }{
		{"parent", s.Parent}, {"qos", strings.Join(s.QoS, ",")}, {"defaultqos", s.DefaultQoS}, {"description", s.Description}, {"organization", s.Organization},
	} {
		if option.value == "" {
			continue
		}
		text := option.key == "description" || option.key == "organization"
		if text && !plainText().MatchString(option.value) || !text && slices.ContainsFunc(strings.Split(option.value, ","), func(n string) bool { return !validName(n) }) {
			return failure.New(failure.Invalid, "%q cannot be the %s of a Slurm account", cut(option.value), option.key)
		}
		args = append(args, option.key+"="+option.value)
	}
	err := c.change(ctx, args)
	if nothing(err, "Nothing new added") {
		return nil
	}
	return classify(err, "create the account")
}

// nothing tells whether sacctmgr failed only because everything is as it should be.
func nothing(err error, words string) bool {
	e, ok := errors.AsType[*CommandError](err)
	return ok && e.Exit == 1 && e.Stderr == words
}

// change runs sacctmgr, one at a time. What it prints belongs to the error: it explains itself on both outputs.
func (c *Client) change(ctx context.Context, args []string) error {
	return c.exclusive(ctx, func() error {
		out, err := c.output(ctx, command{program: "sacctmgr", args: args})
		if e, ok := errors.AsType[*CommandError](err); ok {
			words := strings.TrimSuffix(strings.TrimSpace(out), ".")
			e.Stderr = strings.TrimSpace(e.Stderr + "\n" + words[:min(len(words), maxStderr)])
		}
		return err
	})
}

// AddUsers lets users submit jobs for an account, in one command. Users who are new to Slurm get the account as their
// default one (contract 22 section 12.10); those who have it already are no error.
func (c *Client) AddUsers(ctx context.Context, account string, users ...string) error {
	return c.members(ctx, account, users, "Nothing new added", func(list string) []string {
		return append([]string{"-i", "add", "user", "name=" + list, "account=" + account}, c.clusterArgs()...)
	})
}

// RemoveUsers takes users out of an account; those who do not have it are no error. The error is [ErrBusy] while they
// have jobs there, and [ErrDefaultAccount] if they must get another default account first.
func (c *Client) RemoveUsers(ctx context.Context, account string, users ...string) error {
	return c.members(ctx, account, users, "Nothing deleted", func(list string) []string {
		return append([]string{"-i", "remove", "user", "where", "name=" + list, "account=" + account}, c.clusterArgs()...)
	})
}

func (c *Client) members(ctx context.Context, account string, users []string, unchanged string, args func(list string) []string) error {
	if !validName(account) {
		return failure.New(failure.Invalid, "%q cannot be the name of a Slurm account", cut(account))
	}
	for len(users) > 0 {
		n := min(len(users), idsPerCall)
		list, err := joinNames(users[:n])
		if err != nil {
			return err
		}
		if err := c.change(ctx, args(list)); err != nil && !nothing(err, unchanged) {
			return classify(err, "change the users of the account")
		}
		users = users[n:]
	}
	return nil
}

// SetDefaultAccount sets the default account of a user.
func (c *Client) SetDefaultAccount(ctx context.Context, user, account string) error {
	if !validName(user) || !validName(account) {
		return failure.New(failure.Invalid, "%q cannot be the default account of %q", cut(account), cut(user))
	}
	where := append([]string{"-i", "modify", "user", "where", "name=" + user}, c.clusterArgs()...)
	err := c.change(ctx, append(where, "set", "defaultaccount="+account))
	if nothing(err, "Nothing modified") {
		return nil
	}
	return classify(err, "set the default account")
}

var (
	changeKey   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z]{1,40}$`) })
	changeValue = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_=,:./+-]{1,1000}$`) })
)

// ModifyAccount changes settings of an account and nothing else of it. The error is [ErrNoAccount] if it does not exist.
func (c *Client) ModifyAccount(ctx context.Context, name string, changes ...Change) error {
	if !validName(name) {
		return failure.New(failure.Invalid, "%q cannot be the name of a Slurm account", cut(name))
	}
	if len(changes) == 0 {
		return nil
	}
	args := append([]string{"-i", "modify", "account", "where", "name=" + name}, c.clusterArgs()...)
	args = append(args, "set")
	seen := map[string]string{}
	for _, change := range changes {
		if !changeKey().MatchString(change.Key) || !changeValue().MatchString(change.Value) {
			return failure.New(failure.Invalid, "%q cannot be a setting of a Slurm account", cut(change.Key+"="+change.Value))
		}
		seen[strings.ToLower(change.Key)] = change.Key + "=" + change.Value
	}
	for _, key := range slices.Sorted(maps.Keys(seen)) {
		args = append(args, seen[key])
	}
	return classify(c.change(ctx, args), "change the account")
}

// Limit is the value of a [Change] that sets a limit, or takes it away.
func Limit(n *int64) string {
	if n == nil {
		return "-1"
	}
	return strconv.FormatInt(*n, 10)
}
