// The list of uploads.

import { Queue } from "./upload.js";
import { button, el, nameOf, plural, put, size } from "./api.js";

const list = document.getElementById("uploads");
const rows = new Map();
let timer = 0;

export const queue = new Queue((u) => {
  draw();
  onEnd(u);
});
let onEnd = () => {};

export function whenUploaded(f) { onEnd = f; }

export function upload(uploads) {
  for (const u of uploads) queue.add(u);
  draw();
  if (!timer) timer = setInterval(draw, 250);
}

function describe(u) {
  const files = u.type === "FOLDER" ? u.completed.toLocaleString("en") + " of " + plural(u.totalFiles ?? u.listed, "file") + ", " : "";
  const bytes = u.totalBytes === null ? size(u.sent) : size(u.sent) + " of " + size(u.totalBytes);
  const extra = (u.refused ? "; " + plural(u.refused, "file") + " not taken (there already, or refused)" : "") +
    (u.unreadable ? "; " + plural(u.unreadable, "file") + " could not be read" : "");
  switch (u.state) {
    case "waiting": return "waiting";
    case "running": return files + bytes + ", " + size(u.rate()) + "/s" + extra;
    case "done": return u.why || (u.type === "FOLDER" ? plural(u.completed, "file") + ", " : "") + size(u.sent) + " uploaded" + extra;
    case "stopped": return "stopped" + (u.type === "FOLDER" && u.completed ? " after " + plural(u.completed, "file") : "");
    default: return u.why + (u.listed > 1 ? " (" + u.completed + " of " + plural(u.listed, "file") + " had been confirmed)" : "");
  }
}

function row(u) {
  const bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const text = el("p", { className: "detail" });
  const act = button("Stop", () => {
    if (u.state === "running" || u.state === "waiting") {
      u.stop();
    } else if (u.state === "done") {
      forget(u);
    } else {
      queue.retry(u);
      if (!timer) timer = setInterval(draw, 250);
    }
    draw();
  });
  const drop = button("Dismiss", () => forget(u));
  const item = el("li", {}, el("div", { className: "title" }, nameOf(u.target), el("span", { className: "buttons" }, act, drop)), bar, text);
  list.append(item);
  return { item, bar, text, act, drop };
}

function forget(u) {
  queue.uploads.splice(queue.uploads.indexOf(u), 1);
  rows.get(u).item.remove();
  rows.delete(u);
  draw();
}

function draw() {
  let busy = false;
  for (const u of queue.uploads) {
    if (!rows.has(u)) rows.set(u, row(u));
    const r = rows.get(u), active = u.state === "waiting" || u.state === "running";
    busy ||= active;
    if (r.item.dataset.state !== u.state) r.item.dataset.state = r.item.className = u.state;
    put(r.text, describe(u));
    put(r.act, active ? "Stop" : "Try again");
    r.act.hidden = u.state === "done";
    r.drop.hidden = active;
    r.bar.hidden = !active;
    if (u.state === "waiting") r.bar.value = 0;
    else if (u.totalBytes) r.bar.value = Math.min(1, u.sent / u.totalBytes);
    else if (u.exhausted && u.listed) r.bar.value = u.completed / u.listed;
    else r.bar.removeAttribute("value");
  }
  document.getElementById("uploads-none").hidden = queue.uploads.length > 0;
  if (!busy) {
    clearInterval(timer);
    timer = 0;
  }
}

// Closing the page would end what is still being sent.
addEventListener("beforeunload", (e) => {
  if (queue.uploads.some((u) => u.state === "running" || u.state === "waiting")) e.preventDefault();
});
