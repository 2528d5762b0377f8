package coreapi

import (
	"context"
	"fmt"
	"net/http"

	"ucloud-im/internal/providerapi"
)

// MaxUsageItems is how many items one report may have (contract 30 section 3).
const MaxUsageItems = 500

// ReportUsage tells Core absolute usages, of a scope or, without one, of all that an owner has in a category. It may be
// repeated, since an absolute value changes nothing when it is sent twice; anything else is not sent.
//
// The answer has one element per item: false is a hint that the wallet is locked, and no error. Core works through the
// items in order and stops at the first that it refuses: those before it are recorded, and one item that is refused with
// 403 or 404 says nothing about the others.
func (c *Client) ReportUsage(ctx context.Context, items []providerapi.UsageItem) ([]bool, error) {
	const name = "accounting.v2.reportUsage"
	if len(items) == 0 || len(items) > MaxUsageItems {
		return nil, fmt.Errorf("%s: %w: %d items", name, ErrNotSent, len(items))
	}
	for _, i := range items {
		switch {
		case i.IsDeltaCharge || i.Usage < 0 || i.Description.Scope != nil && *i.Description.Scope == "":
			return nil, fmt.Errorf("%s: %w: only absolute values are reported", name, ErrNotSent)
		case i.CategoryIDV2.Provider != c.provider:
			return nil, fmt.Errorf("%s: %w: category of provider %q", name, ErrNotSent, i.CategoryIDV2.Provider)
		}
	}
	var answer providerapi.BulkResponse[bool]
	err := c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/accounting/v2/reportUsage", repeatable: true,
		body: providerapi.BulkRequest[providerapi.UsageItem]{Items: items},
	}, &answer)
	if err != nil {
		return nil, err
	}
	if len(answer.Responses) != len(items) {
		return nil, fmt.Errorf("%s: %w: %d answers for %d items", name, ErrNoAnswer, len(answer.Responses), len(items))
	}
	return answer.Responses, nil
}

// RegisterGift asks Core to grant a user a quota of ours. It must not be repeated when the outcome is unknown: each call
// that Core carries out grants again. The Core of today has no handler for it and answers 404.
func (c *Client) RegisterGift(ctx context.Context, g providerapi.ProviderGift) error {
	return c.do(ctx, call{
		name: "accounting.v2.registerProviderGift", method: http.MethodPost, path: "/api/accounting/v2/registerProviderGift",
		body: providerapi.BulkRequest[providerapi.ProviderGift]{Items: []providerapi.ProviderGift{g}},
	}, nil)
}
