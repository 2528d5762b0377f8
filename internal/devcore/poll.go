package devcore

import (
	"context"
	"net/http"
	"time"

	"ucloud-im/internal/providerapi"
)

// polled is what Core has learned from its polls.
type polled struct {
	manifest *providerapi.Manifest
	storage  map[string]providerapi.FSSupport // by product id
	branding *providerapi.Branding
	rounds   int // successful rounds
}

// areas in the order in which Core asks for their products (contract 30 section 7).
var areas = []string{"files/collections", "jobs", "ingresses", "networkips", "licenses", "private-networks"}

// Run polls the provider until ctx ends, as Core does from the registration on: every PollInterval, and with a growing
// pause of up to 20 s while all six product calls fail.
func (c *Core) Run(ctx context.Context) {
	pause := 50 * time.Millisecond
	for ctx.Err() == nil {
		wait := c.opt.PollInterval
		if c.poll(ctx) {
			pause = 50 * time.Millisecond
		} else {
			wait = pause
			pause = min(time.Duration(float64(pause)*1.6), 20*time.Second)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// Polls is the number of successful rounds so far.
func (c *Core) Polls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.support.rounds
}

// poll makes one round and tells whether any product call succeeded.
func (c *Core) poll(ctx context.Context) bool {
	base := "/ucloud/" + c.opt.Provider
	var manifest providerapi.Manifest
	manifestErr := c.Call(ctx, "", http.MethodGet, base+"/integration/retrieveManifest", nil, &manifest)
	any := false
	for _, area := range areas {
		var err error
		switch area {
		case "files/collections":
			var res providerapi.BulkResponse[providerapi.FSSupport]
			if err = c.Call(ctx, "", http.MethodGet, base+"/"+area+"/retrieveProducts", nil, &res); err == nil {
				c.learn(res.Responses)
			}
		case "jobs":
			var res providerapi.BulkResponse[providerapi.JobSupport]
			if err = c.Call(ctx, "", http.MethodGet, base+"/"+area+"/retrieveProducts", nil, &res); err == nil {
				c.learnJobs(res.Responses)
			}
		default:
			err = c.Call(ctx, "", http.MethodGet, base+"/"+area+"/retrieveProducts", nil, nil)
		}
		any = any || err == nil
	}
	var branding providerapi.Branding
	brandingErr := c.Call(ctx, "", http.MethodGet, base+"/provider/branding/retrieveInfo", nil, &branding)
	c.mu.Lock()
	defer c.mu.Unlock()
	// The manifest counts only in a round in which a product call succeeded (contract 03 section 2.1).
	if any && manifestErr == nil {
		c.support.manifest = &manifest
	}
	if brandingErr == nil {
		c.support.branding = &branding
	}
	if any {
		c.support.rounds++
	}
	return any
}

func (c *Core) learn(storage []providerapi.FSSupport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.support.storage = map[string]providerapi.FSSupport{}
	for _, s := range storage {
		c.support.storage[s.Product.ID] = s
	}
}
