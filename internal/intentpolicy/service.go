package intentpolicy

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/intent"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
)

// Bounds of what is kept. There are some 40 calls and 20 verdicts; few of the combinations occur.
const (
	maxRows    = 20_000 // of all users
	maxOwnRows = 200    // of one user
	maxReport  = 1024   // rows of one report of an instance
	maxCount   = 100_000
)

// Options configure a [Service]. All are required, except Now.
type Options struct {
	Policy func() *Policy
	// Keyless gives the users with an active mapping who have no key that counts.
	Keyless func(ctx context.Context) ([]ident.UCloudUser, error)
	Metrics prometheus.Registerer
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Service keeps the numbers since its start. They are for a decision of the operator's, and not worth a database.
type Service struct {
	o     Options
	since time.Time
	seen  *prometheus.CounterVec

	mu   sync.Mutex // guards the fields below
	rows map[row]*numbers
	own  map[ident.UCloudUser]int // rows of each user
}

// row is what is counted.
type row struct {
	user                      ident.UCloudUser // "" for all beyond the bounds
	call, verdict, mode, form string
}

type numbers struct {
	count int64
	last  time.Time
}

// New makes a Service.
func New(o Options) *Service {
	if o.Policy == nil || o.Keyless == nil || o.Metrics == nil || o.Log == nil {
		panic("intentpolicy: the options are not complete")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Service{
		o: o, since: o.Now().UTC().Truncate(time.Second), rows: map[row]*numbers{}, own: map[ident.UCloudUser]int{},
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "ucloud", Subsystem: "intents", Name: "seen_total",
			Help: "Calls of users whose signed intent was looked at, by call, verdict and mode of the policy.",
		}, []string{"call", "verdict", "mode"}),
	}
	o.Metrics.MustRegister(s.seen)
	return s
}

// Register registers the calls of the package.
func (s *Service) Register(server *ipc.Server) {
	ipc.Handle(server, ipcapi.IntentSeen, func(_ context.Context, r *ipc.Request, req ipcapi.IntentCounts) (ipcapi.Empty, error) {
		return ipcapi.Empty{}, s.take(r.Grant.User, req)
	})
	ipc.Handle(server, ipcapi.IntentReport, func(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty) (ipcapi.IntentSummary, error) {
		return s.report(ctx)
	})
}

// take adds the numbers of a user's instance.
func (s *Service) take(user ident.UCloudUser, in ipcapi.IntentCounts) error {
	if user == "" || len(in.Counts) > maxReport {
		return failure.New(failure.Invalid, "The numbers about signed intents are not valid")
	}
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range in.Counts {
		if c.Count <= 0 {
			continue
		}
		n := min(c.Count, maxCount)
		r := row{
			user: user, call: known(c.Call, intent.Names()), verdict: known(c.Verdict, verdicts), mode: known(c.Mode, modes),
			form: known(c.Form, forms),
		}
		s.seen.WithLabelValues(r.call, r.verdict, r.mode).Add(float64(n))
		s.addLocked(r, n, now)
	}
	return nil
}

func (s *Service) addLocked(r row, n int64, now time.Time) {
	have := s.rows[r]
	if have == nil && (len(s.rows) >= maxRows || s.own[r.user] >= maxOwnRows) {
		r.user = "" // the rest of the world: at most as many rows as there are words
		have = s.rows[r]
	}
	if have == nil {
		have = new(numbers)
		s.rows[r] = have
		if r.user != "" {
			s.own[r.user]++
		}
	}
	have.count += n
	have.last = now
}

// other stands for words that this version does not know.
const other = "other"

func known(word string, words []string) string {
	if slices.Contains(words, word) {
		return word
	}
	return other
}

var (
	forms    = []string{"", intent.Form1, intent.Form2}
	verdicts = append(reasons(), ipcapi.IntentUnavailable, ipcapi.IntentOptional)
)

func reasons() []string {
	var out []string
	for _, r := range intent.Reasons() {
		out = append(out, string(r))
	}
	return out
}

// report gives everything that was counted, the most frequent refusals first.
func (s *Service) report(ctx context.Context) (ipcapi.IntentSummary, error) {
	keyless, err := s.o.Keyless(ctx)
	if err != nil {
		return ipcapi.IntentSummary{}, err
	}
	slices.Sort(keyless)
	out := ipcapi.IntentSummary{
		Mode: s.o.Policy().Describe(), Since: s.since, Counts: []ipcapi.IntentCount{}, Keyless: append([]ident.UCloudUser{}, keyless...),
	}
	s.mu.Lock()
	for r, n := range s.rows {
		last := n.last.UTC()
		out.Counts = append(out.Counts, ipcapi.IntentCount{
			Call: r.call, Verdict: r.verdict, Mode: r.mode, Form: r.form, Count: n.count, User: r.user, LastAt: &last, Refused: refuses(r.verdict),
		})
	}
	s.mu.Unlock()
	slices.SortFunc(out.Counts, func(a, b ipcapi.IntentCount) int {
		if a.Refused != b.Refused {
			if a.Refused {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Call, b.Call), cmp.Compare(a.User, b.User),
			cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Mode, b.Mode), cmp.Compare(a.Form, b.Form))
	})
	return out, nil
}
