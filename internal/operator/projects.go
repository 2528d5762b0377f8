package operator

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/localuser"
	"ucloud-im/internal/store"
)

// Groups is what this package needs of the name service for the groups of projects.
type Groups interface {
	Group(ctx context.Context, name string) (localuser.Group, error)
	GroupByID(ctx context.Context, gid ident.GID) (localuser.Group, error)
	// Groups are the ids of all groups of an account, the primary one included.
	Groups(ctx context.Context, name string) ([]ident.GID, error)
	Invalidate()
}

// GroupRules say which groups a project may have.
type GroupRules struct {
	MinGID ident.GID // lower ones belong to the system
	// Denied are names of groups that mean something else here: whoever is in one of them is not a member of a project.
	Denied []string
}

// CheckGroup tells whether a project may have this group.
func (r GroupRules) CheckGroup(g localuser.Group) error {
	switch {
	case g.GID == 0 || g.GID < r.MinGID:
		return failure.New(failure.Forbidden, "The group %s has the gid %s, and groups of projects begin at %s", g.Name, g.GID, r.MinGID)
	case slices.Contains(r.Denied, g.Name):
		return failure.New(failure.Forbidden, "The group %s has a meaning of its own for this provider and cannot be that of a project", g.Name)
	}
	return nil
}

// projectState is what the database holds about projects.
type projectState struct {
	projects map[ident.ProjectID]store.Project
	groups   map[ident.ProjectID]store.ProjectGroup
	mappings map[ident.UCloudUser]store.Mapping
}

func (s *Service) readProjects(ctx context.Context) (st projectState, err error) {
	mappings, err := s.o.Users.Mappings(ctx)
	if err != nil {
		return st, err
	}
	st.mappings = map[ident.UCloudUser]store.Mapping{}
	for _, m := range mappings {
		if m.State == store.MappingActive {
			st.mappings[m.User] = m
		}
	}
	err = s.o.Store.View(ctx, func(tx *store.Tx) error {
		st.projects, st.groups = map[ident.ProjectID]store.Project{}, map[ident.ProjectID]store.ProjectGroup{}
		projects, err := tx.Projects()
		if err != nil {
			return err
		}
		for _, p := range projects {
			st.projects[p.ID] = p
		}
		groups, err := tx.ProjectGroups()
		for _, g := range groups {
			st.groups[g.Project] = g
		}
		return err
	})
	return st, err
}

// info describes one project.
func (s *Service) info(ctx context.Context, st projectState, id ident.ProjectID) ipcapi.ProjectInfo {
	out := ipcapi.ProjectInfo{ID: id, State: ipcapi.ProjectUnmapped}
	p, known := st.projects[id]
	if known {
		out.Title, out.Members, out.LastEvent = p.Document.Specification.Title, len(p.Document.Status.Members), &p.ModifiedAt
		for _, m := range p.Document.Status.Members {
			if _, ok := st.mappings[m.Username]; ok {
				out.Connected++
			}
		}
	}
	if g, ok := st.groups[id]; ok {
		out.Group, out.GID, out.State = g.Name, &g.GID, ipcapi.ProjectMapped
		switch now, err := s.o.Groups.GroupByID(ctx, g.GID); {
		case failure.Is(err, failure.NotFound):
			out.State, out.Problem = ipcapi.ProjectBroken, "there is no group with this gid any more"
		case err != nil:
			out.Problem = failure.Why(err)
		default:
			out.Group = now.Name
		}
		if !known {
			out.Problem = "UCloud has not told us about this project"
		}
	}
	if p.Document.Status.Archived && out.State != ipcapi.ProjectBroken {
		out.State = ipcapi.ProjectArchived
	}
	return out
}

func (s *Service) projectList(ctx context.Context, _ *ipc.Request, _ ipcapi.Empty, send func(ipcapi.ProjectPage, ...*os.File) error) error {
	st, err := s.readProjects(ctx)
	if err != nil {
		return err
	}
	var infos []ipcapi.ProjectInfo
	for id := range st.projects {
		infos = append(infos, s.info(ctx, st, id))
	}
	for id := range st.groups {
		if _, ok := st.projects[id]; !ok {
			infos = append(infos, s.info(ctx, st, id))
		}
	}
	slices.SortFunc(infos, func(a, b ipcapi.ProjectInfo) int {
		return cmp.Or(strings.Compare(a.Title, b.Title), strings.Compare(string(a.ID), string(b.ID)))
	})
	return sendPages(infos, func(p []ipcapi.ProjectInfo) ipcapi.ProjectPage { return ipcapi.ProjectPage{Items: p} }, send)
}

func (s *Service) projectShow(ctx context.Context, _ *ipc.Request, req ipcapi.ProjectRef) (ipcapi.ProjectDetails, error) {
	st, err := s.readProjects(ctx)
	if err != nil {
		return ipcapi.ProjectDetails{}, err
	}
	if _, known := st.projects[req.ID]; !known {
		if _, mapped := st.groups[req.ID]; !mapped {
			return ipcapi.ProjectDetails{}, errNoProject
		}
	}
	return s.projectDetails(ctx, st, req.ID)
}

var errNoProject = failure.New(failure.NotFound, "UCloud has not told us about this project; it does so when the project gets an allocation here")

func (s *Service) projectDetails(ctx context.Context, st projectState, id ident.ProjectID) (ipcapi.ProjectDetails, error) {
	d := ipcapi.ProjectDetails{ProjectInfo: s.info(ctx, st, id), People: []ipcapi.ProjectPerson{}, Drives: []ipcapi.DriveInfo{}}
	for _, m := range st.projects[id].Document.Status.Members {
		person := ipcapi.ProjectPerson{User: m.Username, Role: m.Role}
		if local, ok := st.mappings[m.Username]; ok {
			person.LocalName, person.UID = local.LocalName, &local.UID
			if d.GID != nil {
				if gids, err := s.o.Groups.Groups(ctx, local.LocalName); err == nil {
					in := slices.Contains(gids, *d.GID)
					person.InGroup = &in
				}
			}
		}
		d.People = append(d.People, person)
	}
	err := s.o.Store.View(ctx, func(tx *store.Tx) error {
		d.Drives = d.Drives[:0]
		drives, err := tx.DrivesOf(ident.Owner{Project: id})
		for _, x := range drives {
			d.Drives = append(d.Drives, driveInfo(x))
		}
		return err
	})
	return d, err
}

// projectMap gives a project its group. Who is in the group is the site's business: this module never changes groups.
func (s *Service) projectMap(ctx context.Context, r *ipc.Request, req ipcapi.ProjectMapping) (d ipcapi.ProjectDetails, err error) {
	var group localuser.Group
	defer func() {
		s.audit(r, "project.map", err, slog.String("project", text(string(req.ID))), slog.String("group", text(req.Group)),
			slog.Uint64("gid", uint64(group.GID)), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
	}()
	s.o.Groups.Invalidate() // the group may have been made a moment ago
	if gid, numErr := strconv.ParseUint(req.Group, 10, 32); numErr == nil {
		group, err = s.o.Groups.GroupByID(ctx, ident.GID(gid))
	} else {
		group, err = s.o.Groups.Group(ctx, req.Group)
	}
	if err != nil {
		return d, err
	}
	if err := s.o.GroupRules(ctx).CheckGroup(group); err != nil {
		return d, refused(err)
	}
	change := func(tx *store.Tx) error {
		p, err := tx.Project(req.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return errNoProject
		case err != nil:
			return err
		case !p.Document.Specification.CanConsumeResources:
			return failure.New(failure.Invalid, "This project hands resources out and never uses them, so it needs no group")
		}
		groups, err := tx.ProjectGroups()
		if err != nil {
			return err
		}
		for _, g := range groups {
			switch {
			case g.Project == req.ID && g.GID != group.GID:
				return failure.New(failure.Conflict, "The project has the group %s (gid %s). Its files belong to that group; remove the mapping first if that is meant", g.Name, g.GID)
			case g.Project != req.ID && g.GID == group.GID:
				return failure.New(failure.Conflict, "The group %s belongs to the project %s: members of one would reach the files of the other", group.Name, g.Project)
			}
		}
		if req.DryRun {
			return nil
		}
		return tx.SetProjectGroup(req.ID, group.GID, group.Name)
	}
	// In a transaction that writes even for a dry run: it must see what the real one would see.
	if err := s.o.Store.Update(ctx, change); err != nil {
		return d, err
	}
	st, err := s.readProjects(ctx)
	if err != nil {
		return d, err
	}
	if req.DryRun {
		st.groups[req.ID] = store.ProjectGroup{Project: req.ID, GID: group.GID, Name: group.Name}
	} else {
		s.projectChanged(ctx, st, req.ID)
	}
	return s.projectDetails(ctx, st, req.ID)
}

// projectChanged tells the rest of the server that a project has another group, or none.
func (s *Service) projectChanged(ctx context.Context, st projectState, id ident.ProjectID) {
	if s.o.ProjectChanged == nil {
		return
	}
	var members []ident.UCloudUser
	for _, m := range st.projects[id].Document.Status.Members {
		members = append(members, m.Username)
	}
	s.o.ProjectChanged(ctx, id, members)
}

func (s *Service) projectRemove(ctx context.Context, r *ipc.Request, req ipcapi.ProjectMutation) (ipcapi.MutationReport, error) {
	st, err := s.readProjects(ctx)
	if err != nil {
		return ipcapi.MutationReport{}, err
	}
	return each(req.Targets, func(t ipcapi.ProjectTarget) string { return string(t.ID) }, func(t ipcapi.ProjectTarget) (status string, err error) {
		defer func() {
			s.audit(r, "project.remove", err, slog.String("project", text(string(t.ID))), slog.Uint64("gid", uint64(t.GID)),
				slog.Bool("force", req.Force), slog.String("reason", text(req.Reason)), slog.Bool("dryRun", req.DryRun))
		}()
		if p, ok := st.projects[t.ID]; ok && !p.Document.Status.Archived && !req.Force {
			return "", failure.New(failure.Forbidden, "The project lives at UCloud. Without a group it gets no new drives; use --force if that is meant")
		}
		status = ipcapi.ResultOK
		err = s.o.Store.Update(ctx, func(tx *store.Tx) error {
			status = ipcapi.ResultOK
			gid, _, err := tx.ProjectGroup(t.ID)
			switch {
			case errors.Is(err, store.ErrNotFound):
				status = ipcapi.ResultSkipped
				return nil
			case err != nil:
				return err
			case gid != t.GID:
				return failure.New(failure.Conflict, "The project has another group by now")
			case req.DryRun:
				return nil
			}
			return tx.RemoveProjectGroup(t.ID)
		})
		if err == nil && status == ipcapi.ResultOK && !req.DryRun {
			s.projectChanged(ctx, st, t.ID)
		}
		return status, err
	}), nil
}
