// The listing of a folder and what can be done with its entries.

import { attempt, baseName, button, call, driveOf, el, icon, nameOf, owned, parentOf, plural, say, session, shown, size, time } from "./api.js";
import { fromEntries, fromInput } from "./upload.js";
import { upload, whenUploaded } from "./transfers.js";
import { whenTaskEnds } from "./tasks.js";
import { close as closeSearch, search, stop as stopSearch, whenFound } from "./search.js";

const $ = (id) => document.getElementById(id);
const drives = new Map();
const view = { path: "", files: [], next: null, sort: "PATH", descending: false, selected: new Set(), anchor: null, turn: 0 };

let onDrives = async () => {};

export function whenDrivesChange(f) { onDrives = f; }

export function setDrives(list) {
  drives.clear();
  for (const d of list) {
    drives.set(d.id, d);
    owned(d);
  }
  if (view.path && !drives.has(driveOf(view.path))) leave();
}

// viewed is the path of the folder that is shown.
export const viewed = () => view.path;

// leave shows no folder.
export function leave() {
  view.path = "";
  view.turn++;
  $("files-section").hidden = true;
  closeSearch();
}

const drive = () => drives.get(driveOf(view.path));
const feature = (name) => (drive()?.status.resolvedSupport?.features || []).includes(name);
const writable = () => !feature("drive.ops.readOnly") && (drive()?.permissions.myself || []).some((p) => p === "EDIT" || p === "ADMIN");
const trash = () => "/" + driveOf(view.path) + "/Trash";
const inTrash = (path) => path === trash() || path.startsWith(trash() + "/");

function page(path, next, items = 250) {
  const query = new URLSearchParams({
    path, itemsPerPage: String(items), sortBy: view.sort, sortDirection: view.descending ? "descending" : "ascending",
    includeMetadata: "true", includeSizes: "true", includeTimestamps: "true", includeUnixInfo: "true",
  });
  if (!$("hidden").checked) query.set("filterHiddenFiles", "true");
  if (next) query.set("next", next);
  return call("GET", "/api/files/browse?" + query);
}

// browse opens a folder; mark is the path of an entry to point out.
export async function browse(path, mark = null) {
  const turn = ++view.turn;
  $("files-section").setAttribute("aria-busy", "true");
  try {
    const first = await page(path, null);
    if (turn !== view.turn) return; // another folder was opened meanwhile
    Object.assign(view, { path, files: first.items, next: first.next });
    view.selected.clear();
    draw(mark);
  } finally {
    if (turn === view.turn) $("files-section").removeAttribute("aria-busy");
  }
}

// refresh reads again what is shown, and keeps the selection.
export async function refresh() {
  if (!view.path) return;
  const turn = ++view.turn, path = view.path, want = view.files.length;
  let files = [], next = null;
  do {
    const p = await page(path, next, Math.min(1000, Math.max(250, want)));
    if (turn !== view.turn) return;
    files = files.concat(p.items);
    next = p.next;
  } while (next && files.length < want);
  Object.assign(view, { files, next });
  const there = new Set(files.map((f) => f.id));
  for (const id of view.selected) if (!there.has(id)) view.selected.delete(id);
  draw();
}

async function more() {
  const turn = view.turn, p = await page(view.path, view.next);
  if (turn !== view.turn) return;
  view.files = view.files.concat(p.items);
  view.next = p.next;
  for (const f of p.items) $("files").append(row(f));
  footer();
  selection();
}

function draw(mark = null) {
  $("files-section").hidden = false;
  const at = view.path + "\n" + drive()?.specification.title;
  if ($("path").dataset.at !== at) { // a refresh keeps what somebody may be pressing
    $("path").dataset.at = at;
    crumbs($("path"), view.path, (p) => attempt(() => browse(p)));
  }
  $("files").replaceChildren(...view.files.map(row));
  for (const b of document.querySelectorAll("th [data-sort]")) {
    const mine = b.dataset.sort === view.sort;
    b.closest("th").setAttribute("aria-sort", mine ? (view.descending ? "descending" : "ascending") : "none");
  }
  for (const id of ["toolbar", "move", "rename", "delete"]) $(id).hidden = !writable();
  const root = view.path === "/" + driveOf(view.path);
  $("drive-rename").hidden = !root || !feature("drive.management");
  $("drive-delete").hidden = !root || !feature("drive.deletion");
  $("empty-trash").hidden = view.path !== trash();
  $("search-form").hidden = !feature("drive.ops.streamingSearch");
  footer();
  selection();
  if (mark) {
    const tr = [...$("files").rows].find((r) => r.dataset.path === mark);
    if (tr) {
      tr.classList.add("mark");
      tr.scrollIntoView({ block: "center" });
    }
  }
}

function footer() {
  $("more").hidden = view.next === null;
  $("count").textContent = view.files.length || view.next ? plural(view.files.length, "entry").replace("entrys", "entries") + (view.next ? ", and more" : "") : "This folder is empty. Drop files or folders here to upload them.";
}

export function crumbs(nav, path, open) {
  const parts = path.split("/").filter(Boolean);
  nav.replaceChildren();
  parts.forEach((part, i) => {
    if (i) nav.append(el("span", { "aria-hidden": "true" }, "/"));
    const target = "/" + parts.slice(0, i + 1).join("/");
    const link = button("", () => open(target), { className: "link" });
    link.append(el("bdi", {}, i ? shown(part) : drives.get(part)?.specification.title || part));
    if (i === parts.length - 1) link.setAttribute("aria-current", "page");
    nav.append(link);
  });
}

function row(file) {
  const folder = file.status.type === "DIRECTORY", s = file.status;
  const tick = el("input", { type: "checkbox", checked: view.selected.has(file.id), "aria-label": "Select " + shown(baseName(file.id)) });
  tick.onclick = (e) => select(file.id, tick.checked, e.shiftKey);
  const open = button("", () => attempt(() => (folder ? browse(file.id) : download([file.id]))),
    { className: "link", title: folder ? "Open" : "Download" });
  open.append(icon(s.icon === "DIRECTORY_TRASH" ? "trash" : folder ? "folder" : "file"), nameOf(file.id), folder ? "/" : "");
  const tr = el("tr", {},
    el("td", {}, tick), el("td", {}, open),
    el("td", { className: "number" }, folder ? "" : size(s.sizeInBytes)),
    el("td", {}, time(s.modifiedAt)),
    el("td", { className: "mode" }, s.unixMode.toString(8).padStart(4, "0")),
    el("td", { className: "mode" }, s.unixOwner + ":" + s.unixGroup));
  tr.dataset.path = file.id;
  return tr;
}

function select(id, on, range) {
  const ids = view.files.map((f) => f.id), at = ids.indexOf(id), from = ids.indexOf(view.anchor);
  const span = range && from >= 0 ? ids.slice(Math.min(at, from), Math.max(at, from) + 1) : [id];
  for (const i of span) on ? view.selected.add(i) : view.selected.delete(i);
  view.anchor = id;
  selection();
}

// selection brings check boxes and buttons in line with what is selected.
function selection() {
  for (const tr of $("files").rows) {
    const on = view.selected.has(tr.dataset.path);
    tr.classList.toggle("selected", on);
    tr.cells[0].firstChild.checked = on;
  }
  const n = view.selected.size, bad = [...view.selected].some((p) => inTrash(p));
  $("all").checked = n > 0 && n === view.files.length;
  $("all").indeterminate = n > 0 && n < view.files.length;
  $("selected").textContent = n ? n.toLocaleString("en") + " selected" : "";
  for (const id of ["download", "copy", "move", "delete"]) $(id).disabled = n === 0;
  for (const id of ["move", "delete"]) $(id).disabled ||= view.selected.has(trash());
  $("rename").disabled = n !== 1 || view.selected.has(trash());
  $("trash").disabled = n === 0 || bad;
  $("trash").hidden = !writable() || !feature("drive.ops.trash");
}

const chosen = () => [...view.selected];

// bulk makes one call for all selected entries.
async function bulk(method, path, items, done) {
  try {
    await call(method, path, { items });
    say(done);
  } catch (e) {
    say(e.message, true);
  }
  await refresh(); // also after an error: some of the items may have been done
}

function what(ids) {
  return ids.length === 1 ? "“" + shown(baseName(ids[0])) + "”" : ids.length + " entries";
}

// download follows the links as the web client does: the user's name is added, and several files get a tab each.
export async function download(ids) {
  const res = await call("POST", "/api/files/download", { items: ids.map((id) => ({ id })) });
  const hint = btoa(String.fromCharCode(...new TextEncoder().encode(session.user)));
  for (const { endpoint } of res.responses) {
    const a = el("a", { href: endpoint + (endpoint.includes("?") ? "&" : "?") + "usernameHint=" + hint, rel: "noopener" });
    if (res.responses.length > 1) a.target = "_blank";
    document.body.append(a);
    a.click();
    a.remove();
  }
  say("Downloading " + what(ids));
}

// ask shows a dialog and gives what it was closed with, "" for cancelled.
function ask(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue);
    dialog.showModal();
  });
}

async function confirmed(text, action) {
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = action;
  return (await ask($("confirm-dialog"))) === "yes";
}

// newName asks for another name, and gives "" if there is none.
async function newName(old) {
  $("rename-name").value = old;
  $("rename-name").select();
  if ((await ask($("rename-dialog"))) !== "yes") return "";
  const name = $("rename-name").value;
  return name === old ? "" : name;
}

// chooseFolder lets the user walk to a folder, and gives its path, or "".
async function chooseFolder(title, action, from) {
  let at = from, turn = 0;
  $("target-title").textContent = title;
  $("target-yes").textContent = action;
  const open = async (path) => {
    const mine = ++turn;
    $("target-problem").textContent = "";
    try {
      const folders = [];
      for (let next = null, n = 0; n < 4; n++) { // the first few thousand entries are enough to walk by
        const p = await page(path, next, 1000);
        folders.push(...p.items.filter((f) => f.status.type === "DIRECTORY"));
        next = p.next;
        if (!next) break;
      }
      if (mine !== turn) return;
      at = path;
      crumbs($("target-path"), path, open);
      $("target-folders").replaceChildren(...folders.map((f) => {
        const b = button("", () => open(f.id), { className: "link" });
        b.append(icon("folder"), nameOf(f.id));
        return el("li", {}, b);
      }));
      if (!folders.length) $("target-folders").append(el("li", { className: "detail" }, "no folders in here"));
    } catch (e) {
      $("target-problem").textContent = e.message;
    }
  };
  $("target-drives").replaceChildren(...[...drives.values()].map((d) =>
    button(d.specification.title, () => open("/" + d.id))));
  await open(from);
  return (await ask($("target-dialog"))) === "yes" ? at : "";
}

function transferItems(ids, folder) {
  return ids.map((id) => ({ oldId: id, newId: folder + "/" + baseName(id), conflictPolicy: "RENAME" }));
}

const actions = {
  async download() { await download(chosen()); },
  async "drive-rename"() {
    const d = drive(), newTitle = await newName(d.specification.title);
    if (!newTitle) return;
    await call("POST", "/api/files/collections/rename", { items: [{ id: d.id, newTitle }] });
    say("The drive is called “" + shown(newTitle) + "” now");
    await onDrives();
    draw();
  },
  async "drive-delete"() {
    const d = drive();
    if (!(await confirmed("Delete the drive “" + shown(d.specification.title) + "”?", "Delete drive"))) return;
    await call("DELETE", "/api/files/collections", { items: [{ id: d.id }] });
    leave();
    say("Deleted the drive “" + shown(d.specification.title) + "”");
    await onDrives();
  },
  async rename() {
    const [id] = chosen(), name = await newName(baseName(id));
    if (!name) return;
    await bulk("POST", "/api/files/move", [{ oldId: id, newId: parentOf(id) + "/" + name, conflictPolicy: "REJECT" }], "Renamed to “" + shown(name) + "”");
  },
  async move() {
    const ids = chosen(), to = await chooseFolder("Move " + what(ids), "Move here", view.path);
    if (to) await bulk("POST", "/api/files/move", transferItems(ids, to), "Moved " + what(ids));
  },
  async copy() {
    const ids = chosen(), to = await chooseFolder("Copy " + what(ids), "Copy here", view.path);
    if (to) await bulk("POST", "/api/files/copy", transferItems(ids, to), "Copying " + what(ids) + "; the list of tasks shows how far it is");
  },
  async trash() {
    const ids = chosen();
    await bulk("POST", "/api/files/trash", ids.map((id) => ({ id })), "Moved " + what(ids) + " to the trash");
  },
  async delete() {
    const ids = chosen();
    if (await confirmed("Delete " + what(ids) + " for good? This cannot be undone.", "Delete")) {
      await bulk("DELETE", "/api/files", ids.map((id) => ({ id })), "Deleting " + what(ids));
    }
  },
  async "empty-trash"() {
    if (await confirmed("Delete everything in the trash? This cannot be undone.", "Empty trash")) {
      await bulk("POST", "/api/files/emptyTrash", [{ id: trash() }], "Emptying the trash");
    }
  },
  async refresh() { await refresh(); },
  async more() { await more(); },
  async stop() { stopSearch(); },
  async "results-close"() { closeSearch(); },
};
for (const [id, action] of Object.entries(actions)) $(id).onclick = () => attempt(action);

for (const b of document.querySelectorAll("th [data-sort]")) {
  b.onclick = () => {
    view.descending = view.sort === b.dataset.sort ? !view.descending : false;
    view.sort = b.dataset.sort;
    attempt(() => browse(view.path));
  };
}
$("hidden").onchange = () => attempt(() => browse(view.path));
$("all").onclick = () => {
  view.selected = new Set($("all").checked ? view.files.map((f) => f.id) : []);
  selection();
};
$("folder-form").onsubmit = (e) => {
  e.preventDefault();
  attempt(async () => {
    const name = $("folder").value;
    await call("POST", "/api/files/folder", { items: [{ id: view.path + "/" + name, conflictPolicy: "RENAME" }] });
    $("folder").value = "";
    say("Created “" + shown(name) + "”");
    await refresh();
  });
};
$("search-form").onsubmit = (e) => {
  e.preventDefault();
  search(view.path, $("query").value, $("hidden").checked);
};
whenFound((path, mark) => attempt(() => browse(path, mark)));

// Uploads: two inputs behind two buttons, and whatever is dropped on the listing.
for (const [pick, input] of [["pick-files", "upload-files"], ["pick-folder", "upload-folder"]]) {
  $(pick).onclick = () => $(input).click();
  $(input).onchange = () => {
    upload(fromInput(view.path, [...$(input).files]));
    $(input).value = "";
  };
}
const area = $("files-section");
let inside = 0; // dragenter and dragleave come for each child
const carriesFiles = (e) => e.dataTransfer.types.includes("Files") && writable();
area.addEventListener("dragenter", (e) => {
  if (!carriesFiles(e)) return;
  e.preventDefault();
  inside++;
  area.classList.add("drop");
});
area.addEventListener("dragover", (e) => { if (carriesFiles(e)) e.preventDefault(); });
area.addEventListener("dragleave", () => { if (--inside <= 0) { inside = 0; area.classList.remove("drop"); } });
area.addEventListener("drop", (e) => {
  inside = 0;
  area.classList.remove("drop");
  if (!carriesFiles(e)) return;
  e.preventDefault();
  // The entries have to be taken now: the list is empty once the event is over.
  const entries = [...e.dataTransfer.items].map((i) => i.webkitGetAsEntry()).filter(Boolean), folder = view.path;
  attempt(async () => upload(await fromEntries(folder, entries)));
});
for (const e of ["dragover", "drop"]) addEventListener(e, (ev) => ev.preventDefault()); // a miss must not open the file

whenUploaded((u) => {
  if (view.path && parentOf(u.target) === view.path) refresh().catch(() => {});
});
whenTaskEnds((task) => {
  if (task.status.state === "FAILURE") say((task.status.title || "A task") + ": " + (task.status.progress || "failed"), true);
  refresh().catch(() => {});
});
