// The list of background tasks, as Core streams them.

import { attempt, button, call, el, say, session, shown, socket } from "./api.js";

const list = document.getElementById("tasks");
const rows = new Map();
const final = ["CANCELLED", "FAILURE", "SUCCESS"];
const words = {
  IN_QUEUE: "waiting", SUSPENDED: "paused", RUNNING: "running", CANCELLED: "cancelled", FAILURE: "failed", SUCCESS: "done",
};
let ws = null;
let onEnd = () => {};

export function whenTaskEnds(f) { onEnd = f; }

// follow shows the tasks of the user who is signed in.
export function follow() {
  if (ws) {
    ws.onclose = null;
    ws.close();
  }
  rows.clear();
  list.replaceChildren();
  empty();
  connect(session.token);
}

function connect(token) {
  let answered = false;
  ws = socket("/api/tasks", "core2", {});
  ws.onmessage = (m) => {
    const data = JSON.parse(m.data);
    if (!answered) { // the first message says whether there will be a stream
      answered = true;
      if (data.status === 200) ws.send("{}");
      else say(data.payload.why || "No tasks can be shown", true);
      return;
    }
    for (const entry of data.messages) if (entry.type === "TASK") show(entry.task);
  };
  ws.onclose = () => setTimeout(() => { if (session.token === token) connect(token); }, 2000);
}

function ask(task, requestedState) {
  return attempt(() => call("POST", "/api/tasks/pauseOrCancel", { id: task.taskId, requestedState }));
}

function show(task) {
  let r = rows.get(task.taskId);
  if (!r) {
    r = { item: el("li"), state: "" };
    rows.set(task.taskId, r);
    list.prepend(r.item);
  }
  const { state, title, body, progress, progressPercentage: percent } = task.status;
  const active = !final.includes(state), { canPause, canCancel } = task.specification;
  const bar = el("progress", { max: 100, "aria-label": "Progress" });
  if (percent !== null && percent >= 0) bar.value = percent;
  r.item.dataset.state = state;
  r.item.dataset.task = task.taskId;
  r.item.className = { FAILURE: "failed", SUCCESS: "done" }[state] || "";
  r.item.replaceChildren(
    el("div", { className: "title" },
      el("bdi", { className: "name" }, shown(title || "Task " + task.taskId)),
      el("span", { className: "buttons" },
        active && canPause && state !== "SUSPENDED" ? button("Pause", () => ask(task, "SUSPENDED")) : null,
        active && canPause && state === "SUSPENDED" ? button("Resume", () => ask(task, "RUNNING")) : null,
        active && canCancel ? button("Cancel", () => ask(task, "CANCELLED")) : null,
        active ? null : button("Dismiss", () => {
          r.item.remove();
          empty();
        }))),
    active ? bar : "",
    el("p", { className: "detail" }, [words[state] || state, shown(body || ""), shown(progress || "")].filter(Boolean).join(" · ")));
  if (!active && r.state && !final.includes(r.state)) onEnd(task);
  r.state = state;
  empty();
}

function empty() {
  document.getElementById("tasks-none").hidden = list.childElementCount > 0;
}
