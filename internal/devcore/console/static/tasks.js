// The list of background tasks, as Core streams them.

import { attempt, button, call, el, put, say, session, shown, socket } from "./api.js";

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

function ask(id, requestedState) {
  return attempt(() => call("POST", "/api/tasks/pauseOrCancel", { id, requestedState }));
}

function row(id) {
  const r = {
    item: el("li"), name: el("bdi", { className: "name" }), bar: el("progress", { max: 100, "aria-label": "Progress" }),
    text: el("p", { className: "detail" }), state: "",
    pause: button("Pause", () => ask(id, "SUSPENDED")),
    resume: button("Resume", () => ask(id, "RUNNING")),
    cancel: button("Cancel", () => ask(id, "CANCELLED")),
    dismiss: button("Dismiss", () => {
      r.item.remove();
      empty();
    }),
  };
  const buttons = el("span", { className: "buttons" }, r.pause, r.resume, r.cancel, r.dismiss);
  r.item.append(el("div", { className: "title" }, r.name, buttons), r.bar, r.text);
  r.item.dataset.task = id;
  rows.set(id, r);
  list.prepend(r.item);
  return r;
}

function show(task) {
  const r = rows.get(task.taskId) || row(task.taskId);
  const { state, title, body, progress, progressPercentage: percent } = task.status;
  const active = !final.includes(state), { canPause, canCancel } = task.specification;
  put(r.name, shown(title || "Task " + task.taskId));
  put(r.text, [words[state] || state, shown(body || ""), shown(progress || "")].filter(Boolean).join(" · "));
  if (percent !== null && percent >= 0) r.bar.value = percent;
  else r.bar.removeAttribute("value");
  r.bar.hidden = !active;
  r.pause.hidden = !active || !canPause || state === "SUSPENDED";
  r.resume.hidden = !active || !canPause || state !== "SUSPENDED";
  r.cancel.hidden = !active || !canCancel;
  r.dismiss.hidden = active;
  r.item.dataset.state = state;
  r.item.className = { FAILURE: "failed", SUCCESS: "done" }[state] || "";
  if (!active && r.state && !final.includes(r.state)) onEnd(task);
  r.state = state;
  empty();
}

function empty() {
  document.getElementById("tasks-none").hidden = list.childElementCount > 0;
}
