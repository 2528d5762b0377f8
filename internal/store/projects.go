package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Project is a project as Core has sent it last (contract 31 section 3.3).
type Project struct {
	ID         ident.ProjectID
	ModifiedAt time.Time // Core's clock, milliseconds
	Document   providerapi.Project
}

// projectRow is a project before its document is decoded.
type projectRow struct {
	id       ident.ProjectID
	modified int64
	document string
}

func scanProject(s scanner) (r projectRow, err error) {
	err = s.Scan(&r.id, &r.modified, &r.document)
	return r, err
}

func (r projectRow) project() (Project, error) {
	doc, err := decode[providerapi.Project](r.document)
	return Project{ID: r.id, ModifiedAt: fromMS(r.modified), Document: doc}, err
}

// PutProject stores the project with its members, unless a newer state of it is stored already (contract 31 section 8
// rule 5); one with the same time is accepted. changed tells whether what is stored differs now; previous is what was
// stored before, nil if nothing was.
func (tx *Tx) PutProject(p Project) (changed bool, previous *Project, err error) {
	document, err := encode(p.Document)
	if err != nil {
		return false, nil, err
	}
	rows, err := list(tx, scanProject, "look up project",
		`SELECT id, modified_at, document FROM projects WHERE id = ?`, string(p.ID))
	if err != nil {
		return false, nil, err
	}
	if len(rows) > 0 {
		old, err := rows[0].project()
		if err != nil {
			return false, nil, err
		}
		previous = &old
		same := rows[0].modified == toMS(p.ModifiedAt) && rows[0].document == document
		if same || toMS(p.ModifiedAt) < rows[0].modified {
			return false, previous, nil
		}
	}
	if _, err := tx.exec("store project",
		`INSERT INTO projects (id, modified_at, document) VALUES (?, ?, ?)
		 ON CONFLICT (id) DO UPDATE SET modified_at = excluded.modified_at, document = excluded.document`,
		string(p.ID), toMS(p.ModifiedAt), document); err != nil {
		return false, nil, err
	}
	if _, err := tx.exec("forget members", `DELETE FROM project_members WHERE project_id = ?`, string(p.ID)); err != nil {
		return false, nil, err
	}
	for _, m := range p.Document.Status.Members {
		if _, err := tx.exec("store member",
			`INSERT INTO project_members (project_id, user_name) VALUES (?, ?) ON CONFLICT DO NOTHING`,
			string(p.ID), string(m.Username)); err != nil {
			return false, nil, err
		}
	}
	return true, previous, nil
}

// Project is the project with the id.
func (tx *Tx) Project(id ident.ProjectID) (Project, error) {
	r, err := one(tx, scanProject, "look up project", `SELECT id, modified_at, document FROM projects WHERE id = ?`, string(id))
	if err != nil {
		return Project{}, err
	}
	return r.project()
}

// Projects are all projects, in no particular order.
func (tx *Tx) Projects() ([]Project, error) {
	return projects(list(tx, scanProject, "list projects", `SELECT id, modified_at, document FROM projects`))
}

// ProjectsOf are the projects that the user is a member of, in no particular order.
func (tx *Tx) ProjectsOf(user ident.UCloudUser) ([]Project, error) {
	return projects(list(tx, scanProject, "list projects of a user",
		`SELECT p.id, p.modified_at, p.document FROM projects p JOIN project_members m ON m.project_id = p.id
		 WHERE m.user_name = ?`, string(user)))
}

func projects(rows []projectRow, err error) ([]Project, error) {
	if err != nil {
		return nil, err
	}
	all := make([]Project, 0, len(rows))
	for _, r := range rows {
		p, err := r.project()
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// ProjectGroup is the Unix group of a project.
type ProjectGroup struct {
	Project ident.ProjectID
	GID     ident.GID
	Name    string
}

func scanProjectGroup(s scanner) (g ProjectGroup, err error) {
	err = s.Scan(&g.Project, &g.GID, &g.Name)
	return g, err
}

// SetProjectGroup gives a project its Unix group. A group belongs to one project only, otherwise members of one would
// reach the files of the other: a gid that another project has is [ErrConflict] and ends the transaction.
func (tx *Tx) SetProjectGroup(project ident.ProjectID, gid ident.GID, name string) error {
	_, err := tx.exec("store group of project",
		`INSERT INTO project_groups (project_id, gid, group_name) VALUES (?, ?, ?)
		 ON CONFLICT (project_id) DO UPDATE SET gid = excluded.gid, group_name = excluded.group_name`,
		string(project), int64(gid), name)
	return err
}

// ProjectGroup is the Unix group of a project.
func (tx *Tx) ProjectGroup(project ident.ProjectID) (ident.GID, string, error) {
	g, err := one(tx, scanProjectGroup, "look up group of project",
		`SELECT project_id, gid, group_name FROM project_groups WHERE project_id = ?`, string(project))
	return g.GID, g.Name, err
}

// ProjectGroups are the groups of all projects that have one, in no particular order.
func (tx *Tx) ProjectGroups() ([]ProjectGroup, error) {
	return list(tx, scanProjectGroup, "list groups of projects", `SELECT project_id, gid, group_name FROM project_groups`)
}

// RemoveProjectGroup forgets the Unix group of a project; no error if it has none.
func (tx *Tx) RemoveProjectGroup(project ident.ProjectID) error {
	_, err := tx.exec("forget group of project", `DELETE FROM project_groups WHERE project_id = ?`, string(project))
	return err
}

// encode is how a document from Core is stored.
func encode(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode document: %w", err)
	}
	return string(b), nil
}

func decode[T any](text string) (v T, err error) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return v, errors.Join(errors.New("decode stored document"), err)
	}
	return v, nil
}
