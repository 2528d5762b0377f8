package devcore

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/providerapi"
)

// finalTask are the states after which Core changes nothing any more.
var finalTask = []providerapi.TaskState{providerapi.TaskSuccess, providerapi.TaskFailure, providerapi.TaskCancelled}

const (
	// taskVisible is how long a task is listed after its last change (contract 14 section 2).
	taskVisible = 5 * time.Minute
	taskText    = 1024 // bytes
)

// handleTasks serves both sides of background tasks (contract 14).
func (c *Core) handleTasks(mux *http.ServeMux) {
	mux.HandleFunc("POST /api/tasks", c.control(c.serveCreateTask))
	mux.HandleFunc("POST /api/tasks/postStatus", c.control(c.servePostTaskStatus))
	mux.HandleFunc("POST /api/tasks/markAsComplete", c.control(c.serveTaskComplete))
	mux.HandleFunc("GET /api/tasks/browse", c.endUser(c.serveBrowseTasks))
	mux.HandleFunc("GET /api/tasks/retrieve", c.endUser(c.serveRetrieveTask))
	mux.HandleFunc("POST /api/tasks/pauseOrCancel", c.endUser(c.servePauseOrCancel))
	mux.HandleFunc("GET /api/tasks", c.serveTaskStream)
}

func (c *Core) serveCreateTask(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.CreateTask](w, r)
	if !ok {
		return
	}
	for _, text := range []*string{req.Title, req.Body, req.Progress, req.Icon} {
		if text != nil && len(*text) > taskText {
			c.violate(r.URL.Path, "a text of more than 1024 bytes", false)
			errorBody(w, http.StatusBadRequest, "Text is too long")
			return
		}
	}
	c.mu.Lock()
	known := c.users[req.User] != nil
	var task providerapi.Task
	if known {
		now := providerapi.MillisOf(time.Now())
		task = providerapi.Task{
			TaskID: int64(len(c.tasks) + 1), CreatedAt: now, ModifiedAt: now, CreatedBy: req.User, Provider: c.opt.Provider, Icon: req.Icon,
			Status:        providerapi.TaskStatus{State: providerapi.TaskInQueue, Title: req.Title, Body: req.Body, Progress: req.Progress},
			Specification: providerapi.TaskSpecification{CanPause: req.CanPause, CanCancel: req.CanCancel},
		}
		c.tasks = append(c.tasks, task)
		c.announceTasksLocked()
	}
	c.mu.Unlock()
	if !known {
		errorBody(w, http.StatusNotFound, "Unknown user specified")
		return
	}
	respond(w, http.StatusOK, task)
}

func (c *Core) servePostTaskStatus(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[providerapi.PostTaskStatus](w, r)
	if !ok {
		return
	}
	c.changeTask(w, req.Update.TaskID, func(t *providerapi.Task) { t.Status = req.Update.NewStatus })
}

func (c *Core) serveTaskComplete(w http.ResponseWriter, r *http.Request) {
	req, ok := decode[struct {
		ID int64 `json:"id"`
	}](w, r)
	if !ok {
		return
	}
	c.changeTask(w, req.ID, func(t *providerapi.Task) { t.Status.State = providerapi.TaskSuccess })
}

func (c *Core) changeTask(w http.ResponseWriter, id int64, change func(*providerapi.Task)) {
	c.mu.Lock()
	known := id >= 1 && id <= int64(len(c.tasks))
	if known {
		t := &c.tasks[id-1]
		change(t)
		// Streams tell a change by the time, so it always grows.
		t.ModifiedAt = max(providerapi.MillisOf(time.Now()), t.ModifiedAt+1)
		c.announceTasksLocked()
	}
	c.mu.Unlock()
	if !known {
		errorBody(w, http.StatusNotFound, "Unknown task requested")
		return
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

// Tasks are the background tasks of a user, oldest first.
func (c *Core) Tasks(who ident.UCloudUser) []providerapi.Task {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []providerapi.Task
	for _, t := range c.tasks {
		if t.CreatedBy == who {
			out = append(out, t)
		}
	}
	return out
}

// Ended tells whether a task has come to its end.
func Ended(t providerapi.Task) bool { return slices.Contains(finalTask, t.Status.State) }

// visibleTasks are the tasks that Core lists, the last changed one first.
func (c *Core) visibleTasks(who ident.UCloudUser) providerapi.List[providerapi.Task] {
	since := providerapi.MillisOf(time.Now().Add(-taskVisible))
	var out providerapi.List[providerapi.Task]
	for _, t := range c.Tasks(who) {
		if t.ModifiedAt >= since {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b providerapi.Task) int { return int(b.ModifiedAt - a.ModifiedAt) })
	return out
}

func (c *Core) serveBrowseTasks(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	n, _ := strconv.Atoi(r.URL.Query().Get("itemsPerPage"))
	if n <= 0 {
		n = 50
	}
	tasks := c.visibleTasks(who)
	respond(w, http.StatusOK, providerapi.Page[providerapi.Task]{Items: tasks[:min(n, len(tasks))], ItemsPerPage: n})
}

// task finds a task of a user.
func (c *Core) task(id int64, who ident.UCloudUser) (providerapi.Task, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id < 1 || id > int64(len(c.tasks)) || c.tasks[id-1].CreatedBy != who {
		return providerapi.Task{}, false
	}
	return c.tasks[id-1], true
}

func (c *Core) serveRetrieveTask(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	id, _ := strconv.ParseInt(r.URL.Query().Get("id"), 10, 64)
	t, ok := c.task(id, who)
	if !ok {
		errorBody(w, http.StatusNotFound, "Unknown task requested")
		return
	}
	respond(w, http.StatusOK, t)
}

// servePauseOrCancel checks that the task is the user's and nothing else (contract 14 section 3).
func (c *Core) servePauseOrCancel(w http.ResponseWriter, r *http.Request, who ident.UCloudUser) {
	req, ok := decode[providerapi.PauseOrCancelTask](w, r)
	if !ok {
		return
	}
	if _, ok := c.task(req.ID, who); !ok {
		errorBody(w, http.StatusNotFound, "Unknown task requested")
		return
	}
	if err := c.Call(r.Context(), who, http.MethodPost, "/ucloud/"+c.opt.Provider+"/tasks/pauseOrCancel", req, nil); err != nil {
		fail(w, err)
		return
	}
	respond(w, http.StatusOK, providerapi.Empty{})
}

// announceTasksLocked wakes the streams.
func (c *Core) announceTasksLocked() {
	close(c.tasksChanged)
	c.tasksChanged = make(chan struct{})
}

// serveTaskStream is the stream in which a user sees tasks change (recording 13 section 15): a request, its answer, a
// second message of any content, and then batches of tasks, all visible ones first.
func (c *Core) serveTaskStream(w http.ResponseWriter, r *http.Request) {
	conn, req, who := openSocket[any](c, w, r)
	if conn == nil {
		return
	}
	defer conn.CloseNow()
	if send(r.Context(), conn, socketMessage{Type: "response", StreamID: req.StreamID, Payload: providerapi.Empty{}, Status: http.StatusOK}) != nil {
		return
	}
	if _, _, err := conn.Read(r.Context()); err != nil {
		return
	}
	type entry struct {
		Type         string           `json:"type"`
		Task         providerapi.Task `json:"task"`
		Notification any              `json:"notification"`
	}
	ctx := conn.CloseRead(r.Context())
	sent := map[int64]providerapi.Millis{}
	for {
		c.mu.Lock()
		changed := c.tasksChanged
		c.mu.Unlock()
		var batch []entry
		for _, t := range c.visibleTasks(who) {
			if at, ok := sent[t.TaskID]; !ok || at != t.ModifiedAt {
				sent[t.TaskID] = t.ModifiedAt
				batch = append(batch, entry{Type: "TASK", Task: t})
			}
		}
		if len(batch) > 0 && send(ctx, conn, map[string]any{"messages": batch}) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
