package scripts

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/trustpath"
)

// Options configure a [Runner]. Provider, Spool and Record are required.
type Options struct {
	Provider    string
	Spool       string        // directory for request files (scripts.spool)
	Home        string        // HOME of the programs
	Timeout     time.Duration // scripts.timeout, for hooks without an own one; 0 means 60 s
	Concurrency int           // scripts.concurrency; 0 means that of the hook
	MaxOutput   int           // scripts.maxOutput in bytes; 0 means 4 MiB
	Redact      []string      // scripts.redact
	Record      Recorder
	// Temporary allows programs below sticky directories such as /tmp. For development only.
	Temporary bool
	// AddressSpace (bytes) and Processes limit each program; 0 means no limit. Processes counts those of our account.
	AddressSpace, Processes uint64
	// Observe is told about each call, for metrics; kind is empty for a success. It must not block.
	Observe func(hook string, kind Kind, took time.Duration)
	Log     *slog.Logger // nil discards
}

// Entry is a call as it is written down (contract 42 section A.4).
type Entry struct {
	Invocation string
	Hook       string
	Path       string
	FileHash   string // SHA-256, hexadecimal; empty if the program was not read
	Key        string
	Owner      ident.Owner
	UID        ident.UID // that executed
	Attempt    int
	StartedAt  time.Time
	Duration   time.Duration
	Result     string // "ok" or a [Kind]
	Exit       *int
	Signal     string
	Message    string
	// Request is redacted. Texts are cut at 64 KiB with a note; the numbers count what the program wrote.
	Request, Stdout, Stderr  string
	StdoutBytes, StderrBytes int64
}

// Recorder keeps entries. It logs its own failures: a call that has happened has happened.
type Recorder interface {
	RecordScript(ctx context.Context, e Entry)
}

// Limits of contract 42 sections A.1 and A.4.
const (
	defaultOutput = 4 << 20
	maxStderr     = 1 << 20
	maxRecorded   = 64 << 10
	maxRequest    = 16 << 20 // ours; a request that large is a mistake of ours
)

// Defaults are settings of all hooks, which may change while the runner is in use ([Runner.SetDefaults]). Zero values are
// as in [Options].
type Defaults struct {
	Timeout     time.Duration
	Concurrency int
	MaxOutput   int
	Redact      []string
}

// Runner runs programs. Make it with [New], call [Runner.Open] once before the first call and [Runner.Close] after the
// last one.
type Runner struct {
	o     Options
	log   *slog.Logger
	rules trustpath.Rules
	lanes lanes

	defaults atomic.Pointer[Defaults]

	mu    sync.Mutex
	spool *os.Root
}

// New makes a runner. It does no I/O.
func New(o Options) (*Runner, error) {
	if o.Provider == "" || o.Spool == "" || o.Record == nil {
		return nil, errors.New("script runner: provider id, spool directory and recorder are required")
	}
	if o.Home == "" {
		o.Home = "/"
	}
	if o.Observe == nil {
		o.Observe = func(string, Kind, time.Duration) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runner{
		o: o, log: o.Log.With("part", "scripts"),
		rules: trustpath.Rules{Account: os.Geteuid(), Temporary: o.Temporary},
	}
	r.SetDefaults(Defaults{Timeout: o.Timeout, Concurrency: o.Concurrency, MaxOutput: o.MaxOutput, Redact: o.Redact})
	return r, nil
}

// SetDefaults replaces the defaults, for a reload. Output and masking change for all calls that begin later, the others
// for hooks that are made later.
func (r *Runner) SetDefaults(d Defaults) {
	if d.MaxOutput <= 0 {
		d.MaxOutput = defaultOutput
	}
	r.defaults.Store(&d)
}

// Open prepares the directory for requests and removes what an earlier process has left there.
func (r *Runner) Open() error {
	root, removed, err := openSpool(r.o.Spool)
	if err != nil {
		return err
	}
	if removed > 0 {
		r.log.Warn("calls of scripts were cut short by the end of the last process", "calls", removed)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spool = root
	return nil
}

// Close releases the directory. No call may be under way.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spool == nil {
		return nil
	}
	root := r.spool
	r.spool = nil
	return root.Close()
}

// Call is one call of a hook.
type Call struct {
	// Key names what the call is about: a user, project, drive or account. Calls of one key never overlap and keep their
	// order, those of hooks that change something and those of hooks that only look apart.
	Key     string
	Owner   ident.Owner // for the script log
	Request any         // encodes to a JSON object; nil is an empty one
	Attempt int         // from 1; 0 means 1
	Reason  string      // why now
	DryRun  bool        // the program must change nothing
}

// Call runs the program once and fills reply, a pointer; nil for a hook whose reply nobody reads. A failure is an
// [*Error], unless ctx has ended before the call's turn came.
func (h *Hook) Call(ctx context.Context, c Call, reply any) error {
	_, err := h.call(ctx, c, reply)
	return err
}

// call is [Hook.Call], and gives what was written down as well.
func (h *Hook) call(ctx context.Context, c Call, reply any) (Entry, error) {
	lane := "look/" + c.Key
	if h.t.changes {
		lane = "change/" + c.Key
	}
	if c.Key == "" {
		lane = ""
	}
	leave, err := h.r.lanes.enter(ctx, lane)
	if err != nil {
		return Entry{}, fmt.Errorf("script %s: wait for the turn: %w", h.o.Name, err)
	}
	if err := h.slots.Acquire(ctx, 1); err != nil {
		leave()
		return Entry{}, fmt.Errorf("script %s: wait for the turn: %w", h.o.Name, context.Cause(ctx))
	}
	release := func() {
		h.slots.Release(1)
		leave()
	}
	if c.Attempt <= 0 {
		c.Attempt = 1
	}
	run := &invocation{h: h, c: c, id: newInvocation(), start: time.Now()}
	failure := run.do(ctx, reply)
	entry := run.finish(ctx, failure)
	if gone := run.gone(); gone != nil {
		// A killed program that the kernel cannot end keeps its place: another call would not fare better.
		go func() {
			<-gone
			release()
		}()
	} else {
		release()
	}
	if failure != nil {
		return entry, failure
	}
	return entry, nil
}

func newInvocation() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// invocation is one execution.
type invocation struct {
	h       *Hook
	c       Call
	id      string
	start   time.Time
	hash    string
	request []byte
	end     *ending // nil: the program was not started
	message string  // what a successful program says about itself
}

// gone is nil if the program has ended.
func (v *invocation) gone() <-chan struct{} {
	if v.end == nil || !v.end.stuck {
		return nil
	}
	return v.end.gone
}

// do executes the program and judges the outcome.
func (v *invocation) do(ctx context.Context, reply any) *Error {
	h := v.h
	fail := func(k Kind, err error) *Error {
		return &Error{Hook: h.o.Name, Kind: k, Invocation: v.id, Exit: -1, Message: cleanMessage(err.Error()), Cause: err}
	}
	var err error
	v.request, err = encodeRequest(v.c.Request, meta{
		Hook: h.o.Name, InvocationID: v.id, Protocol: h.o.Protocol, Attempt: v.c.Attempt, DryRun: v.c.DryRun,
		Reason: v.c.Reason, ProviderID: h.r.o.Provider, Time: v.start.UTC(),
	})
	if err != nil {
		return fail(Technical, err)
	}
	if len(v.request) > maxRequest {
		return fail(Technical, fmt.Errorf("the request has %d bytes", len(v.request)))
	}
	p, err := openProgram(h.r.rules, h.o.Path)
	if err != nil {
		return fail(Refused, err)
	}
	defer p.close()
	v.hash = p.hash
	if v.end, err = v.execute(ctx, p); err != nil {
		return fail(Technical, err)
	}
	return v.judge(reply)
}

// execute runs the checked program.
func (v *invocation) execute(ctx context.Context, p *program) (*ending, error) {
	h, r := v.h, v.h.r
	r.mu.Lock()
	spool := r.spool
	r.mu.Unlock()
	if spool == nil {
		return nil, errors.New("the runner is not open")
	}
	name := v.id + ".json"
	stdin, err := writeRequest(spool, name, v.request)
	if err != nil {
		return nil, err
	}
	defer func() {
		stdin.Close() //nolint:errcheck // only read
		if err := spool.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.log.Error("the request file of a script is not removed", "invocation", v.id, "error", err)
		}
	}()
	s := &spec{
		program: p, args: append(append([]string{}, h.o.Args...), r.o.Spool+"/"+name), stdin: stdin, timeout: h.o.Timeout, hurried: h.t.hurried,
		maxOut: r.defaults.Load().MaxOutput, maxErr: maxStderr, addressSpace: r.o.AddressSpace, processes: r.o.Processes,
	}
	if r.log.Enabled(ctx, slog.LevelDebug) {
		s.stderrLine = func(line string) {
			r.log.Debug("script says", "hook", h.o.Name, "invocation", v.id, "line", v.hide(line))
		}
	}
	s.env = v.environment()
	for i, secret := range h.o.Secrets {
		f, err := secretFile(secret.Name, secret.Value.Reveal())
		if err != nil {
			return nil, err
		}
		defer f.Close()
		s.secrets = append(s.secrets, f)
		s.env = append(s.env, secretVariable(secret.Name)+"="+strconv.Itoa(3+i))
	}
	return s.run(ctx)
}

// environment is built from nothing (contract 42 SCR-5). What the operator adds may replace the first three.
func (v *invocation) environment() []string {
	h := v.h
	first := map[string]string{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": h.r.o.Home}
	for name, value := range h.o.Environment {
		first[name] = value
	}
	env := []string{
		"UCLOUD_PROVIDER_ID=" + h.r.o.Provider, "UCLOUD_HOOK=" + h.o.Name, "UCLOUD_INVOCATION_ID=" + v.id,
		"UCLOUD_PROTOCOL=" + strconv.Itoa(h.o.Protocol), "UCLOUD_ATTEMPT=" + strconv.Itoa(v.c.Attempt),
		"UCLOUD_DEADLINE=" + time.Now().Add(h.o.Timeout).UTC().Format(time.RFC3339),
	}
	for name, value := range first {
		env = append(env, name+"="+value)
	}
	return env
}

// judge turns the end of the program into an outcome (contract 42 section A.3).
func (v *invocation) judge(reply any) *Error {
	h, e := v.h, v.end
	f := &Error{Hook: h.o.Name, Invocation: v.id, Exit: e.exit, Signal: e.signal}
	switch {
	case e.stuck:
		f.Kind, f.Message = TimedOut, "it was killed and does not end; a file system may hang"
		return f
	case e.timedOut:
		f.Kind, f.Message = TimedOut, fmt.Sprintf("it did not end within %v", h.o.Timeout)
		return f
	case e.interrupted:
		f.Kind, f.Message = Interrupted, "the service ended it"
		return f
	case e.signal != "":
		f.Kind, f.Message = Technical, v.lastWords()
		return f
	}
	a, err := parseAnswer(e.out.kept, h.o.Protocol)
	if e.exit != 0 || (err == nil && a.failure != nil) {
		f.Kind, f.UserMessage, f.RetryAfter = kindOfExit(e.exit), v.hide(a.userMessage), a.retryAfter
		if e.exit == 0 { // it says itself that it failed
			f.Kind = Failed
		}
		if a.failure != nil && !a.failure.Retryable && f.Kind.Retryable() {
			f.Kind = Permanent
		}
		if f.Message = v.hide(a.message); f.Message == "" {
			f.Message = v.lastWords()
		}
		return f
	}
	switch {
	case e.out.overflow():
		err = fmt.Errorf("the reply has %d bytes, allowed are %d", e.out.size, h.r.defaults.Load().MaxOutput)
	case errors.Is(err, errEmptyReply) && !h.t.needsReply:
		return nil
	}
	var unknown string
	if err == nil {
		unknown, err = a.decode(reply)
	}
	if err != nil {
		f.Kind, f.Message, f.Cause = InvalidReply, v.hide(cleanMessage(err.Error())), err
		return f
	}
	if unknown != "" {
		h.r.log.Debug("part of a reply is ignored", "hook", h.o.Name, "invocation", v.id, "why", unknown)
	}
	v.message = v.hide(a.message)
	if r, ok := reply.(remarked); ok {
		r.remark(v.hide(a.userMessage))
	}
	return nil
}

// lastWords is the last line on standard error, which usually says what went wrong.
func (v *invocation) lastWords() string {
	text := strings.TrimSpace(string(v.end.err.kept))
	return v.hide(cleanMessage(text[strings.LastIndexByte(text, '\n')+1:]))
}

// hide masks the secrets that the program was given, should it print one (contract 40 SEC-4); also those in variables
// that are called like the fields to be redacted.
func (v *invocation) hide(s string) string {
	for _, secret := range v.h.o.Secrets {
		s = strings.ReplaceAll(s, secret.Value.Reveal(), observability.Redacted)
	}
	for name, value := range v.h.o.Environment {
		if value != "" && secretName(name, v.h.r.defaults.Load().Redact) {
			s = strings.ReplaceAll(s, value, observability.Redacted)
		}
	}
	return s
}

// recordTimeout bounds the writing down of a call while the service ends.
const recordTimeout = 10 * time.Second

// finish writes the call down and tells about it.
func (v *invocation) finish(ctx context.Context, f *Error) Entry {
	h, took := v.h, time.Since(v.start)
	e := Entry{
		Invocation: v.id, Hook: h.o.Name, Path: h.o.Path, FileHash: v.hash, Key: v.c.Key, Owner: v.c.Owner,
		UID: ident.UID(os.Geteuid()), Attempt: v.c.Attempt, StartedAt: v.start, Duration: took, Result: resultOK, //nolint:gosec // a uid
		Message: v.message, Request: cut(redact(v.request, h.r.defaults.Load().Redact)),
	}
	if v.end != nil {
		e.Signal, e.StdoutBytes, e.StderrBytes = v.end.signal, v.end.out.size, v.end.err.size
		e.Stdout, e.Stderr = cut(v.hide(string(v.end.out.kept))), cut(v.hide(string(v.end.err.kept)))
		if v.end.exit >= 0 {
			e.Exit = &v.end.exit
		}
	}
	var kind Kind
	if f != nil {
		kind, e.Result, e.Message = f.Kind, string(f.Kind), f.Message
		level := slog.LevelWarn
		if f.Kind.Broken() {
			level = slog.LevelError
		}
		h.r.log.Log(ctx, level, "script failed", "hook", h.o.Name, "path", h.o.Path, "kind", string(f.Kind), "exit", f.Exit,
			"signal", f.Signal, "attempt", v.c.Attempt, "took", took, "invocation", v.id, "message", f.Message)
	}
	h.r.o.Observe(h.o.Name, kind, took)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	h.r.o.Record.RecordScript(ctx, e)
	return e
}

// cut shortens a text for the script log.
func cut(s string) string {
	if len(s) <= maxRecorded {
		return s
	}
	return s[:maxRecorded] + fmt.Sprintf("\n[cut: %d bytes in all]", len(s))
}
