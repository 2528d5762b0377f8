// The search below a folder: results arrive while the provider looks.

import { button, el, icon, plural, refused, session, shown, size, socket, time, parentOf } from "./api.js";

const $ = (id) => document.getElementById(id);
const most = 2000; // rows
let current = null;
let open = () => {};

export function whenFound(f) { open = f; }

export function search(folder, query, hidden) {
  stop();
  const run = { ws: null, found: 0, ended: false, why: "" };
  current = run;
  $("results").replaceChildren();
  $("results-section").hidden = false;
  $("results-where").textContent = "“" + shown(query) + "”";
  const status = (text, isError = false) => {
    if (current !== run) return;
    $("results-status").textContent = text;
    $("results-status").className = isError ? "error" : "";
  };
  status("searching…");
  $("stop").hidden = false;
  const flags = { includeSizes: true, includeTimestamps: true, ...(hidden ? {} : { filterHiddenFiles: true }) };
  const ws = socket("/api/files", "files.streamingSearch", { query, currentFolder: folder, flags });
  run.ws = ws;
  ws.onmessage = (m) => {
    const { type, payload, status: code } = JSON.parse(m.data);
    if (type === "response") {
      if (code === 482) refused();
      if (code > 399) run.why = payload.why || "The search failed (" + code + ")";
      run.ended = true;
    } else if (payload.type === "end_of_results") {
      run.ended = true;
      ws.close();
    } else {
      for (const file of payload.batch || []) add(run, folder, file);
      status("searching… " + plural(run.found, "result"));
    }
  };
  ws.onclose = () => {
    if (current !== run) return;
    $("stop").hidden = true;
    const left = run.found > most ? ", the first " + most.toLocaleString("en") + " are shown" : "";
    if (run.why) status(run.why, true);
    else if (run.stopped) status("stopped, " + plural(run.found, "result") + left);
    else if (!run.ended) status("The search ended early, after " + plural(run.found, "result") + left, true);
    else status((run.found ? plural(run.found, "result") : "nothing found") + left);
  };
}

function add(run, folder, file) {
  if (current !== run) return;
  if (++run.found > most) return;
  const below = file.id.startsWith(folder + "/") ? file.id.slice(folder.length + 1) : file.id;
  const isFolder = file.status.type === "DIRECTORY";
  const go = button("", () => open(isFolder ? file.id : parentOf(file.id), isFolder ? null : file.id), { className: "link" });
  go.append(icon(isFolder ? "folder" : "file"), el("bdi", { className: "name" }, shown(below) + (isFolder ? "/" : "")));
  $("results").append(el("tr", {},
    el("td", {}, go), el("td", { className: "number" }, isFolder ? "" : size(file.status.sizeInBytes)), el("td", {}, time(file.status.modifiedAt))));
}

export function stop() {
  if (!current) return;
  current.stopped = true;
  current.ws.close();
}

// close leaves the results.
export function close() {
  const was = current;
  current = null;
  if (was) was.ws.close();
  $("results-section").hidden = true;
}
