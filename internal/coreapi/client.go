package coreapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"ucloud-im/internal/providerapi"
)

// Tokens is where the client gets access tokens from; [TokenSource] is the implementation.
type Tokens interface {
	Token(ctx context.Context) (string, error)
	Renew(ctx context.Context, used string) (string, error)
}

// Options configure a [Client].
type Options struct {
	BaseURL   string        // address of Core (provider.hosts.ucloud)
	Provider  string        // our provider id
	HTTP      *http.Client  // from [NewHTTPClient]
	Tokens    Tokens        // a [TokenSource]
	Timeout   time.Duration // of one call (provider.core.requestTimeout); 0 means 10 s
	UserAgent string        // empty means "ucloud-im"
	Log       *slog.Logger  // nil discards
}

// maxAnswer bounds one answer of Core in bytes, decompressed. A page of 1,000 drives is about 1 MiB.
const maxAnswer = 32 << 20

// maxPages bounds the number of pages of one listing: 10 million entries.
const maxPages = 10_000

// Client makes calls to Core. It is safe for concurrent use.
type Client struct {
	base     *url.URL
	provider string
	http     *http.Client
	tokens   Tokens
	timeout  time.Duration
	agent    string
	log      *slog.Logger
}

// New makes a client. It does no I/O.
func New(o Options) (*Client, error) {
	base, err := ParseBaseURL(o.BaseURL)
	if err != nil {
		return nil, err
	}
	if o.HTTP == nil || o.Tokens == nil || o.Provider == "" {
		return nil, errors.New("client of Core: HTTP client, token source and provider id are required")
	}
	return &Client{
		base:     base,
		provider: o.Provider,
		http:     o.HTTP,
		tokens:   o.Tokens,
		timeout:  orDefault(o.Timeout, defaultTimeout),
		agent:    orDefault(o.UserAgent, defaultUserAgent),
		log:      orDefault(o.Log, slog.New(slog.DiscardHandler)).With("part", "coreapi"),
	}, nil
}

// call describes one call of Core's API.
type call struct {
	name   string // dotted name
	method string
	path   string
	query  url.Values
	body   any
	// repeatable: carrying the call out twice is the same as once. Only then a refused token leads to a second try.
	repeatable bool
}

// do makes the call and decodes the answer into out (nil: only the status counts).
func (c *Client) do(ctx context.Context, cl call, out any) error {
	token, err := c.tokens.Token(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", cl.name, notSent(err))
	}
	err = c.once(ctx, cl, token, out)
	if s := Status(err); s != http.StatusForbidden && s != http.StatusUnauthorized {
		return err
	}
	// Core answers 403 to a token it does not accept, and to much else (recordings 02 sections 5 to 7).
	renewed, renewErr := c.tokens.Renew(ctx, token)
	if renewErr != nil || !cl.repeatable {
		return err
	}
	c.log.Debug("call repeated with another access token", "call", cl.name)
	return c.once(ctx, cl, renewed, out)
}

// notSent makes sure that an error of a token source says what it means for the call.
func notSent(err error) error {
	if errors.Is(err, ErrNotSent) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotSent, err)
}

func (c *Client) once(ctx context.Context, cl call, token string, out any) error {
	if token == "" {
		return fmt.Errorf("%s: %w: the access token is empty", cl.name, ErrNotSent)
	}
	u := c.base.JoinPath(cl.path)
	u.RawQuery = cl.query.Encode()
	return send(ctx, c.http, c.timeout, request{
		call: cl.name, method: cl.method, url: u.String(), token: token, agent: c.agent, body: cl.body, maxBody: maxAnswer,
	}, out)
}

// browse reads all pages of a listing and hands each to page, which ends the walk by returning false. A page may be
// short or empty without being the last one: only next decides (contract 00 section 3).
func browse[T any](ctx context.Context, c *Client, cl call, perPage int, page func([]T) bool) error {
	cl.method, cl.repeatable = http.MethodGet, true
	query := url.Values{}
	for k, v := range cl.query {
		query[k] = v
	}
	query.Set("itemsPerPage", strconv.Itoa(perPage))
	cl.query = query
	for range maxPages {
		var answer providerapi.Page[T]
		if err := c.do(ctx, cl, &answer); err != nil {
			return err
		}
		if !page(answer.Items) || answer.Next == nil || *answer.Next == "" {
			return nil
		}
		if query.Get("next") == *answer.Next {
			return fmt.Errorf("%s: Core gave the same page twice", cl.name)
		}
		query.Set("next", *answer.Next)
	}
	return fmt.Errorf("%s: more than %d pages", cl.name, maxPages)
}
