package coreapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"ucloud-im/internal/providerapi"
)

// TypeJob is the type of a job in [Resource].
const TypeJob = "job"

// MaxJobUpdates is how many updates go into one call (contract 22 section 6.3).
const MaxJobUpdates = 100

// UpdateJobs adds updates to the histories of jobs. Those of one job are applied in order. Core looks at all ids before
// it does anything: one that it does not know, or that is another provider's, makes it refuse the whole call with 404, and
// [UnknownJob] tells which one it was. A call of unknown outcome may be repeated if each update with a state has
// ExpectedDifferentState; a mere message would be there twice.
func (c *Client) UpdateJobs(ctx context.Context, items []providerapi.JobUpdateItem) error {
	const name = "jobs.control.update"
	if len(items) == 0 || len(items) > MaxJobUpdates {
		return fmt.Errorf("%s: %w: %d items", name, ErrNotSent, len(items))
	}
	return c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/jobs/control/update", repeatable: true, // a 403 has changed nothing
		body: providerapi.BulkRequest[providerapi.JobUpdateItem]{Items: items},
	}, nil)
}

// unknownJob is how Core names the job that a batch fails of (contract 20 section 3.2).
var unknownJob = regexp.MustCompile(`permission denied \(([^()]{1,100})\)`)

// UnknownJob is the id of the job that Core does not know, from the error of [Client.UpdateJobs].
func UnknownJob(err error) (string, bool) {
	e, ok := errors.AsType[*StatusError](err)
	if !ok || e.Status != http.StatusNotFound {
		return "", false
	}
	m := unknownJob.FindStringSubmatch(e.Why)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// RetrieveJob gives one job without its history. It may be repeated. A job that is unknown, or not ours, is a
// [StatusError] with 403 or 404.
func (c *Client) RetrieveJob(ctx context.Context, id string) (providerapi.Job, error) {
	var j providerapi.Job
	err := c.do(ctx, call{
		name: "jobs.control.retrieve", method: http.MethodGet, repeatable: true,
		path: "/api/jobs/control/retrieve", query: url.Values{"id": {id}},
	}, &j)
	if err == nil && j.ID != id {
		err = fmt.Errorf("jobs.control.retrieve: %w: another job than asked for", ErrNoAnswer)
	}
	return j, err
}

// RegisterJob tells Core about a job that was submitted elsewhere and gives Core's id of it. One item per call, so that an
// answer belongs to one job. 409 means that the provider generated id is taken; [Client.FindJob] then tells by which job.
// User and project must be known to Core, otherwise Core's process ends.
func (c *Client) RegisterJob(ctx context.Context, j providerapi.RegisterJob) (string, error) {
	const name = "jobs.control.register"
	switch {
	case j.Spec.Product.Provider != c.provider:
		return "", fmt.Errorf("%s: %w: the product is of provider %q", name, ErrNotSent, j.Spec.Product.Provider)
	case j.ProviderGeneratedID == "" || strings.Contains(j.ProviderGeneratedID, ","):
		return "", fmt.Errorf("%s: %w: a provider generated id without comma is needed", name, ErrNotSent)
	case j.CreatedBy == nil || *j.CreatedBy == "":
		return "", fmt.Errorf("%s: %w: no user", name, ErrNotSent)
	}
	var answer providerapi.BulkResponse[providerapi.FindByID]
	err := c.do(ctx, call{
		name: name, method: http.MethodPost, path: "/api/jobs/control/register",
		body: providerapi.BulkRequest[providerapi.RegisterJob]{Items: []providerapi.RegisterJob{j}},
	}, &answer)
	if err != nil {
		return "", err
	}
	if len(answer.Responses) != 1 || answer.Responses[0].ID == "" {
		return "", fmt.Errorf("%s: %w: %d ids for one job", name, ErrNoAnswer, len(answer.Responses))
	}
	return answer.Responses[0].ID, nil
}

// FindJob looks a job of this provider up by its provider generated id, which has no comma. It may be repeated.
func (c *Client) FindJob(ctx context.Context, providerGeneratedID string) (found providerapi.Job, ok bool, err error) {
	err = browse(ctx, c, call{
		name: "jobs.control.browse", path: "/api/jobs/control/browse", query: url.Values{"filterProviderIds": {providerGeneratedID}},
	}, perPage, func(items []providerapi.Job) bool {
		for _, j := range items {
			if j.ProviderGeneratedID == providerGeneratedID && j.ID != "" { // the filter is a convenience, this is the test
				found, ok = j, true
				return false
			}
		}
		return true
	})
	if err != nil {
		return providerapi.Job{}, false, err
	}
	return found, ok, nil
}
