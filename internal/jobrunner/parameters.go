package jobrunner

import (
	"context"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/jobrender"
	"ucloud-im/internal/providerapi"
)

// Parameters are those that the provider adds to the form of an application (contract 20 section 2.8, 22 section 9). The
// form is shown to users who have not decided for this provider yet: without the server there is nothing to choose, which is
// better than no form.
func (r *Runner) Parameters(ctx context.Context, req *providerapi.DynamicParametersRequest) ([]providerapi.ApplicationParameter, error) {
	site, err := r.o.Site()
	if err != nil {
		return nil, err
	}
	var accounts []string
	owner := req.Owner.Workspace()
	if owner.IsProject() || owner.User == r.o.User {
		choices, err := r.o.Server.Choices(ctx, owner.Project)
		switch {
		case err == nil && !choices.Mapped:
			accounts = choices.Accounts
		case err != nil && !failure.Is(err, failure.NotFound):
			r.log.Warn("the accounts to choose among are not known", "error", err)
		}
	}
	return jobrender.DynamicParameters(req.Owner, &req.Application, site, accounts), nil
}
