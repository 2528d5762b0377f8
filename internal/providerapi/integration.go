package providerapi

import "ucloud-im/internal/ident"

// Manifest is the answer of integration/retrieveManifest. ExpireAfterMs stays nil: Core's test of it is inverted
// (contract 03 section 2.4).
type Manifest struct {
	Enabled       bool   `json:"enabled"`
	ExpireAfterMs *int64 `json:"expireAfterMs"`
}

// FindByUser is the body of integration/connect, init, unlinked and of the control calls about connections.
type FindByUser struct {
	Username ident.UCloudUser `json:"username"`
}

// ConnectResponse is the answer of integration/connect: an absolute URL.
type ConnectResponse struct {
	RedirectTo string `json:"redirectTo"`
}

// KeyUpload is what a browser sends to the address of [ConnectResponse] if it signs its requests (contract 01 section
// 7.2). The answer is a ConnectResponse again.
type KeyUpload struct {
	PublicKey string `json:"publicKey"` // SubjectPublicKeyInfo in PEM
}

// RefreshToken is one item of auth/providers/refresh.
type RefreshToken struct {
	RefreshToken string `json:"refreshToken"`
}

// AccessToken is one answer of auth/providers/refresh.
type AccessToken struct {
	AccessToken string `json:"accessToken"`
	CSRFToken   string `json:"csrfToken"`
}

// Project is a project as the event stream carries it (contract 32 section 1).
type Project struct {
	ID            ident.ProjectID      `json:"id"`
	CreatedAt     Millis               `json:"createdAt"`
	ModifiedAt    Millis               `json:"modifiedAt"`
	Specification ProjectSpecification `json:"specification"`
	Status        ProjectStatus        `json:"status"`
}

// ProjectSpecification is the part of a project chosen by its creator. A project that cannot consume resources only
// hands them out: it gets no drives and no group.
type ProjectSpecification struct {
	Parent              *ident.ProjectID `json:"parent"`
	Title               string           `json:"title"`
	CanConsumeResources bool             `json:"canConsumeResources"`
}

// ProjectStatus holds members, groups and settings.
type ProjectStatus struct {
	Archived                   bool                `json:"archived"`
	IsFavorite                 bool                `json:"isFavorite"`
	IsHidden                   bool                `json:"isHidden"`
	Members                    List[ProjectMember] `json:"members"`
	Groups                     List[ProjectGroup]  `json:"groups"`
	Settings                   ProjectSettings     `json:"settings"`
	MyRole                     string              `json:"myRole"`
	Path                       string              `json:"path"`
	PersonalProviderProjectFor *string             `json:"personalProviderProjectFor"`
}

// ProjectSettings holds what the project's administrators may switch.
type ProjectSettings struct {
	SubProjects struct {
		AllowRenaming bool `json:"allowRenaming"`
	} `json:"subProjects"`
}

// ProjectMember is a member with a role: PI, ADMIN or USER.
type ProjectMember struct {
	Username ident.UCloudUser `json:"username"`
	Role     string           `json:"role"`
}

// ProjectGroup is a group inside a project.
type ProjectGroup struct {
	ID            string `json:"id"`
	CreatedAt     Millis `json:"createdAt"`
	Specification struct {
		Project ident.ProjectID `json:"project"`
		Title   string          `json:"title"`
	} `json:"specification"`
	Status struct {
		Members List[ident.UCloudUser] `json:"members"`
	} `json:"status"`
}
