package devcore

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// Features that guard what end users do with drives. Deletion is not guarded (contract 12 section 2).
const featureManagement = "drive.management"

// handleDrives adds the calls with which end users make and change drives (recording 06 sections 10 to 17).
func (c *Core) handleDrives(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/files/collections", c.endUser(c.serveCreateDrives))
	mux.HandleFunc("DELETE /api/files/collections", c.endUser(c.serveDeleteDrives))
	mux.HandleFunc("POST /api/files/collections/rename", c.endUser(c.serveRenameDrives))
	mux.HandleFunc("POST /api/files/collections/updateLabels", c.endUser(c.serveDriveLabels))
}

// serveCreateDrives makes a resource for each drive, asks the provider, and keeps them if it agrees.
func (c *Core) serveCreateDrives(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[providerapi.DriveSpecification]](w, r)
	if !ok {
		return
	}
	var forward providerapi.BulkRequest[providerapi.Drive]
	for _, spec := range req.Items {
		d, err := c.newDrive(spec, who, ident.ProjectID(r.Header.Get("Project")))
		if err != nil {
			fail(w, err)
			return
		}
		forward.Items = append(forward.Items, *d)
	}
	var answer providerapi.BulkResponse[providerapi.FindByID]
	if err := c.Call(r.Context(), who, http.MethodPost, c.filesPath("/collections"), forward, &answer); err != nil {
		fail(w, err)
		return
	}
	var res providerapi.BulkResponse[providerapi.FindByID]
	c.mu.Lock()
	taken := false
	for i := range forward.Items {
		d := &forward.Items[i]
		d.Status = providerapi.DriveStatus{}
		if i < len(answer.Responses) {
			d.ProviderGeneratedID = answer.Responses[i].ID
		}
		if pgid := d.ProviderGeneratedID; pgid != "" {
			if _, exists := c.byPGID[pgid]; exists {
				taken = true
				break
			}
			c.byPGID[pgid] = d.ID
		}
		c.drives[d.ID] = d
		res.Responses = append(res.Responses, providerapi.FindByID{ID: string(d.ID)})
	}
	c.mu.Unlock()
	if taken {
		c.die(r, "two resources with the same provider generated id") // contract 00 section 9.9
	}
	respond(w, http.StatusOK, res)
}

// newDrive checks what an end user wants and makes the drive, which is not kept yet.
func (c *Core) newDrive(spec providerapi.DriveSpecification, who ident.UCloudUser, project ident.ProjectID) (*providerapi.Drive, error) {
	if strings.TrimSpace(spec.Title) == "" || strings.Contains(spec.Title, "\n") {
		return nil, &CallError{StatusCode: http.StatusBadRequest, Why: "The title is not valid"}
	}
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := &providerapi.Drive{
		CreatedAt: providerapi.MillisOf(time.Now()), Owner: providerapi.ResourceOwner{CreatedBy: who}, Specification: spec,
		Permissions: &providerapi.Permissions{Others: []providerapi.ACLEntry{}},
	}
	if project != "" {
		if !c.isMemberLocked(project, who) {
			return nil, &CallError{StatusCode: http.StatusForbidden, Why: "You are not a member of this project"}
		}
		d.Owner.Project = &project
	}
	c.resolveLocked(d)
	if !has(d, featureManagement) {
		return nil, &CallError{StatusCode: http.StatusNotFound, Why: "Drives of this product cannot be made"}
	}
	c.nextID++
	d.ID = ident.DriveID(strconv.Itoa(c.nextID))
	return d, nil
}

// drivesFor gives the drives with the ids as the user sees them; an error if one may not be changed.
func (c *Core) drivesFor(ids []ident.DriveID, who ident.UCloudUser, feature string) ([]providerapi.Drive, error) {
	var out []providerapi.Drive
	for _, id := range ids {
		d, err := c.driveOf("/"+string(id), who, providerapi.PermissionEdit)
		if err != nil {
			return nil, err
		}
		if feature != "" && !has(d, feature) {
			return nil, &CallError{StatusCode: http.StatusNotFound, Why: "This drive does not support it"}
		}
		out = append(out, *d)
	}
	return out, nil
}

func (c *Core) serveDeleteDrives(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[struct {
		ID ident.DriveID `json:"id"`
	}]](w, r)
	if !ok {
		return
	}
	var ids []ident.DriveID
	for _, item := range req.Items {
		ids = append(ids, item.ID)
	}
	drives, err := c.drivesFor(ids, who, "")
	if err == nil {
		err = c.Call(r.Context(), who, http.MethodDelete, c.filesPath("/collections"), providerapi.BulkRequest[providerapi.Drive]{Items: drives}, nil)
	}
	if err != nil {
		fail(w, err)
		return
	}
	c.mu.Lock()
	for _, d := range drives {
		delete(c.drives, d.ID)
		delete(c.byPGID, d.ProviderGeneratedID)
	}
	c.mu.Unlock()
	respond(w, http.StatusOK, providerapi.BulkResponse[providerapi.Empty]{Responses: make([]providerapi.Empty, len(drives))})
}

func (c *Core) serveRenameDrives(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.BulkRequest[providerapi.RenameDrive]](w, r)
	if !ok {
		return
	}
	var ids []ident.DriveID
	for _, item := range req.Items {
		ids = append(ids, item.ID)
	}
	_, err := c.drivesFor(ids, who, featureManagement)
	if err == nil {
		err = c.Call(r.Context(), who, http.MethodPost, c.filesPath("/collections/rename"), req, nil)
	}
	if err != nil {
		fail(w, err)
		return
	}
	c.mu.Lock()
	for _, item := range req.Items {
		if d := c.drives[item.ID]; d != nil {
			d.Specification.Title = item.NewTitle
		}
	}
	c.mu.Unlock()
	respond(w, http.StatusOK, providerapi.Empty{})
}

// serveDriveLabels tells the provider the new labels, and keeps the old ones if it does not agree; 404 is agreement.
func (c *Core) serveDriveLabels(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	type item struct {
		ID     ident.DriveID     `json:"id"`
		Labels map[string]string `json:"labels"`
	}
	req, ok := decode[providerapi.BulkRequest[item]](w, r)
	if !ok {
		return
	}
	var ids []ident.DriveID
	for _, it := range req.Items {
		ids = append(ids, it.ID)
	}
	drives, err := c.drivesFor(ids, who, "")
	if err == nil {
		for i := range drives {
			drives[i].Specification.Labels = req.Items[i].Labels
		}
		err = c.Call(r.Context(), who, http.MethodPost, c.filesPath("/collections/onUpdatedLabels"), providerapi.BulkRequest[providerapi.Drive]{Items: drives}, nil)
	}
	if e, ok := err.(*CallError); err != nil && (!ok || e.StatusCode != http.StatusNotFound) {
		fail(w, err)
		return
	}
	c.mu.Lock()
	for _, it := range req.Items {
		if d := c.drives[it.ID]; d != nil {
			d.Specification.Labels = it.Labels
		}
	}
	c.mu.Unlock()
	respond(w, http.StatusOK, providerapi.Empty{})
}
