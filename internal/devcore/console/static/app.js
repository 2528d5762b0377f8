"use strict";

const $ = (id) => document.getElementById(id);
// The key stands behind the # of the printed URL, so that it is in no log and no Referer.
const key = new URLSearchParams(location.hash.slice(1)).get("key") || "";
const state = { token: "", user: "", path: "", titles: {}, next: null };

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").className = isError ? "error" : "";
}

async function call(method, path, body) {
  const res = await fetch(path, {
    method,
    headers: { Authorization: "Bearer " + state.token, "X-Dev-Key": key, ...(body ? { "Content-Type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
  });
  const data = await res.json().catch(() => ({}));
  if (!res.ok) throw new Error(data.why || "The call failed with status " + res.status);
  return data;
}

// attempt runs an action and shows its failure instead of losing it.
async function attempt(action) {
  try {
    await action();
  } catch (e) {
    say(e.message, true);
  }
}

async function signIn(name) {
  const login = await call("POST", "/auth/loginServer", { username: name, password: key, service: "console" });
  Object.assign(state, { token: login.accessToken, user: name, path: "", titles: {} });
  $("files-section").hidden = true;
  $("continue").hidden = true;
  say("Signed in as " + name);
  await refresh();
}

// refresh shows the connection and the drives.
async function refresh() {
  const page = await call("GET", "/api/providers/integration/browse?itemsPerPage=50");
  const entry = page.items[0];
  $("connect").hidden = !entry || entry.connected;
  $("disconnect").hidden = !entry || !entry.connected;
  if (!entry) {
    $("connection").textContent = "You have no allocation at any provider.";
  } else {
    $("connection").textContent = entry.providerTitle + ": " + (entry.connected ? "connected" : "not connected");
    if (entry.connected) $("continue").hidden = true;
  }
  const drives = await call("GET", "/api/files/collections/browse?itemsPerPage=250");
  $("drives").replaceChildren();
  for (const drive of drives.items) {
    state.titles[drive.id] = drive.specification.title;
    const open = document.createElement("button");
    open.type = "button";
    open.className = "link";
    open.textContent = drive.specification.title + " (" + drive.id + ")";
    open.onclick = () => attempt(() => browse("/" + drive.id));
    const item = document.createElement("li");
    item.append(open);
    $("drives").append(item);
  }
  if (!drives.items.length) {
    const item = document.createElement("li");
    item.textContent = "No drives yet. They appear once the connection has been approved.";
    $("drives").append(item);
  }
}

function breadcrumbs(path) {
  const nav = $("path");
  nav.replaceChildren();
  const parts = path.split("/").filter(Boolean);
  parts.forEach((part, i) => {
    if (i) {
      const slash = document.createElement("span");
      slash.textContent = "/";
      nav.append(slash);
    }
    const target = "/" + parts.slice(0, i + 1).join("/");
    const link = document.createElement("button");
    link.type = "button";
    link.className = "link";
    link.textContent = i ? part : state.titles[part] || part;
    link.onclick = () => attempt(() => browse(target));
    nav.append(link);
  });
}

async function browse(path, next = null) {
  const query = new URLSearchParams({
    path, itemsPerPage: "250", sortBy: $("sort").value,
    sortDirection: $("descending").checked ? "descending" : "ascending",
    includeMetadata: "true", includeSizes: "true", includeTimestamps: "true", includeUnixInfo: "true",
  });
  if (!$("hidden").checked) query.set("filterHiddenFiles", "true");
  if (next) query.set("next", next);
  const page = await call("GET", "/api/files/browse?" + query);
  state.path = path;
  state.next = page.next;
  $("files-section").hidden = false;
  breadcrumbs(path);
  if (!next) $("files").replaceChildren();
  for (const file of page.items) $("files").append(row(file));
  $("more").hidden = page.next === null;
  say(next ? "" : page.items.length + (page.next === null ? "" : " or more") + " entries");
}

function row(file) {
  const tr = document.createElement("tr");
  const name = file.id.slice(file.id.lastIndexOf("/") + 1);
  const cells = [
    null,
    file.status.sizeInBytes === null ? "" : file.status.sizeInBytes.toLocaleString(),
    new Date(file.status.modifiedAt).toLocaleString(),
    file.status.unixMode.toString(8).padStart(4, "0"),
    file.status.unixOwner + ":" + file.status.unixGroup,
  ];
  cells.forEach((text) => {
    const td = document.createElement("td");
    if (text !== null) {
      td.textContent = text;
    } else if (file.status.type === "DIRECTORY") {
      const open = document.createElement("button");
      open.type = "button";
      open.className = "link";
      open.textContent = name + "/";
      open.onclick = () => attempt(() => browse(file.id));
      td.append(open);
    } else {
      td.textContent = name;
    }
    tr.append(td);
  });
  return tr;
}

$("user").onchange = () => attempt(() => signIn($("user").value));
$("connect").onclick = () => attempt(async () => {
  const res = await call("POST", "/api/providers/integration/connect", { provider: state.provider });
  const link = $("continue");
  link.href = res.redirectTo;
  link.hidden = false;
  link.focus();
  say("The provider has a page for you.");
});
$("disconnect").onclick = () => attempt(async () => {
  await call("POST", "/api/providers/integration/clearConnection", { provider: state.provider });
  $("files-section").hidden = true;
  say("Disconnected");
  await refresh();
});
$("folder-form").onsubmit = (e) => {
  e.preventDefault();
  attempt(async () => {
    const name = $("folder").value;
    await call("POST", "/api/files/folder", { items: [{ id: state.path + "/" + name, conflictPolicy: "RENAME" }] });
    $("folder").value = "";
    await browse(state.path);
    say("Created " + name);
  });
};
for (const id of ["sort", "descending", "hidden"]) $(id).onchange = () => attempt(() => browse(state.path));
$("more").onclick = () => attempt(() => browse(state.path, state.next));

attempt(async () => {
  const s = await call("GET", "/api/dev/state");
  state.provider = s.provider;
  for (const user of s.users) $("user").append(new Option(user.name, user.name));
  if (s.users.length) await signIn(s.users[0].name);
  // The approval happens elsewhere: look again while the page is visible and the user waits.
  setInterval(() => {
    if (state.token && !document.hidden && !$("connect").hidden) refresh().catch(() => {});
    else if (state.token && !document.hidden && !Object.keys(state.titles).length) refresh().catch(() => {});
  }, 1500);
});
