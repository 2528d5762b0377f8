package coreapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// perPage is how many entries a listing asks for. Core allows up to 1,000 (contract 00 section 3).
const perPage = 250

// TypeDrive is Core's resource type name of a drive, for [Client.CheckExistence].
const TypeDrive = "file_collection"

// BrowseProducts gives all products of this provider that Core knows, of all categories. It may be repeated.
func (c *Client) BrowseProducts(ctx context.Context) ([]providerapi.Product, error) {
	var all []providerapi.Product
	err := browse(ctx, c, call{
		name:  "products.v2.browse",
		path:  "/api/products/v2/browse",
		query: url.Values{"filterProvider": {c.provider}},
	}, perPage, func(items []providerapi.Product) bool {
		all = append(all, items...)
		return true
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// DeclareProducts creates or overwrites the products of one category, in one transaction at Core. It may be repeated.
// A category is never moved: unit, frequency and freeToUse of an existing one stay as they were, without an error
// (contract 30 section 2), so the caller compares first.
func (c *Client) DeclareProducts(ctx context.Context, products []providerapi.Product) error {
	const name = "products.v2.create"
	if len(products) == 0 {
		return fmt.Errorf("%s: %w: no products", name, ErrNotSent)
	}
	for _, p := range products {
		if p.Category.Provider != c.provider || p.Category != products[0].Category {
			return fmt.Errorf("%s: %w: product %q is not of the one category %q of this provider",
				name, ErrNotSent, p.Name, products[0].Category.Name)
		}
	}
	return c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/products/v2", repeatable: true,
		body: providerapi.BulkRequest[providerapi.Product]{Items: products},
	}, nil)
}

// RegisterDrive tells Core about one drive and gives Core's id of it. One item per call, so that an answer belongs to
// one drive.
//
// The call must not be repeated without the rules of contract 05 section C: owner and product must be known to Core,
// otherwise Core's process ends. 409 means that the provider generated id is taken; [Client.FindDrive] then tells by
// which drive.
func (c *Client) RegisterDrive(ctx context.Context, d providerapi.RegisterDrive) (ident.DriveID, error) {
	const name = "files.collections.control.register"
	switch {
	case d.Spec.Product.Provider != c.provider:
		return "", fmt.Errorf("%s: %w: the product is of provider %q", name, ErrNotSent, d.Spec.Product.Provider)
	case d.Spec.Labels != nil:
		// Labels that Core does not like leave the id reserved until Core restarts (contract 05 section C, rule 5).
		return "", fmt.Errorf("%s: %w: labels are not allowed", name, ErrNotSent)
	case d.ProviderGeneratedID == "":
		return "", fmt.Errorf("%s: %w: no provider generated id", name, ErrNotSent)
	}
	var answer providerapi.BulkResponse[providerapi.FindByID]
	err := c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/files/collections/control/register",
		body: providerapi.BulkRequest[providerapi.RegisterDrive]{Items: []providerapi.RegisterDrive{d}},
	}, &answer)
	if err != nil {
		return "", err
	}
	if len(answer.Responses) != 1 || answer.Responses[0].ID == "" {
		return "", fmt.Errorf("%s: %w: %d ids for one drive", name, ErrNoAnswer, len(answer.Responses))
	}
	return ident.DriveID(answer.Responses[0].ID), nil
}

// FindDrive looks a drive of this provider up by its provider generated id. It may be repeated. Core's filter splits
// at commas, so that an id with a comma is looked for in the whole listing.
func (c *Client) FindDrive(ctx context.Context, providerGeneratedID string) (providerapi.Drive, bool, error) {
	if strings.Contains(providerGeneratedID, ",") {
		return c.FindDriveByBrowsing(ctx, providerGeneratedID)
	}
	return c.findDrive(ctx, providerGeneratedID, url.Values{"filterProviderIds": {providerGeneratedID}})
}

// FindDriveByBrowsing does what [Client.FindDrive] does by reading the list of all drives of this provider. It is the
// last word where the filter found nothing although Core says that the id is taken.
func (c *Client) FindDriveByBrowsing(ctx context.Context, providerGeneratedID string) (providerapi.Drive, bool, error) {
	return c.findDrive(ctx, providerGeneratedID, nil)
}

func (c *Client) findDrive(ctx context.Context, id string, query url.Values) (found providerapi.Drive, ok bool, err error) {
	err = browse(ctx, c, call{
		name:  "files.collections.control.browse",
		path:  "/api/files/collections/control/browse",
		query: query,
	}, perPage, func(items []providerapi.Drive) bool {
		for _, d := range items {
			if d.ProviderGeneratedID == id { // the filter is a convenience, this is the test
				found, ok = d, true
				return false
			}
		}
		return true
	})
	if err == nil && ok && found.ID == "" {
		err = errors.New("files.collections.control.browse: Core names a drive without id")
	}
	if err != nil {
		return providerapi.Drive{}, false, err
	}
	return found, ok, nil
}

// RetrieveDrive gives one drive with the access entries of others. It may be repeated. A drive that is unknown or not
// ours is a [StatusError] with 403 (recordings 06 section 9).
func (c *Client) RetrieveDrive(ctx context.Context, id ident.DriveID) (providerapi.Drive, error) {
	var d providerapi.Drive
	err := c.do(ctx, call{
		name: "files.collections.control.retrieve", method: http.MethodGet, repeatable: true,
		path:  "/api/files/collections/control/retrieve",
		query: url.Values{"id": {string(id)}, "includeOthers": {"true"}},
	}, &d)
	if err == nil && d.ID != id {
		err = fmt.Errorf("files.collections.control.retrieve: %w: another drive than asked for", ErrNoAnswer)
	}
	return d, err
}

// ClearConnection removes the connection of a user at Core. It may be repeated and does no harm if there is none.
func (c *Client) ClearConnection(ctx context.Context, u ident.UCloudUser) error {
	return c.do(ctx, call{
		name: "providers.integration.control.clearConnection", method: http.MethodPost, repeatable: true,
		path: "/api/providers/integration/control/clearConnection",
		body: providerapi.FindByUser{Username: u},
	}, nil)
}

// ApproveConnection connects a user at Core.
//
// It must never be sent for a user who is connected already, nor for one whom Core does not know: Core's process ends
// some seconds later. Send it directly after [Client.ClearConnection], and after [ErrNoAnswer] wait half a minute
// before the pair is sent again (contract 05, step D6).
func (c *Client) ApproveConnection(ctx context.Context, u ident.UCloudUser) error {
	return c.do(ctx, call{
		name: "providers.integration.control.approveConnection", method: http.MethodPost,
		path: "/api/providers/integration/control/approveConnection",
		body: providerapi.FindByUser{Username: u},
	}, nil)
}

// Resource names a resource by type and id, for [Client.CheckExistence].
type Resource struct {
	Type string `json:"type"` // such as [TypeDrive]
	ID   string `json:"id"`
}

// CheckExistence tells for each resource whether Core still has it, in the same order. It may be repeated.
func (c *Client) CheckExistence(ctx context.Context, resources []Resource) ([]bool, error) {
	const name = "providers.resources.checkExistence"
	if len(resources) == 0 {
		return nil, nil
	}
	var answer providerapi.BulkResponse[bool]
	err := c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/providers/resources/checkExistence", repeatable: true,
		body: providerapi.BulkRequest[Resource]{Items: resources},
	}, &answer)
	if err != nil {
		return nil, err
	}
	if len(answer.Responses) != len(resources) {
		// Taking a short answer for "does not exist" would delete what is in use.
		return nil, fmt.Errorf("%s: %w: %d answers for %d resources", name, ErrNoAnswer, len(answer.Responses), len(resources))
	}
	return answer.Responses, nil
}

// ProjectMetadata is what Core tells a provider about any project.
type ProjectMetadata struct {
	ID         ident.ProjectID  `json:"id"`
	Title      string           `json:"title"`
	PIUsername ident.UCloudUser `json:"piUsername"` // [ident.SystemUser] if there is none
}

// RetrieveProjectMetadata gives title and principal investigator of any project (contract 32 section 2). It may be
// repeated.
func (c *Client) RetrieveProjectMetadata(ctx context.Context, id ident.ProjectID) (ProjectMetadata, error) {
	var m ProjectMetadata
	err := c.do(ctx, call{
		name: "projects.v2.retrieveMetadata", method: http.MethodGet, repeatable: true,
		path:  "/api/projects/v2/retrieveMetadata",
		query: url.Values{"id": {string(id)}},
	}, &m)
	return m, err
}
