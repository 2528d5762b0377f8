// Signing in, the connection to the provider, and the list of drives.

import { attempt, button, call, icon, key, el, say, session, shown } from "./api.js";
import { browse, leave, setDrives, viewed, whenDrivesChange } from "./files.js";
import { folderTerminal, forget as forgetJobs, leaveJobs, setUp as setUpJobs } from "./jobs.js";
import { follow } from "./tasks.js";

const $ = (id) => document.getElementById(id);
let known = 0; // drives of which everything is known
let product; // in which the user can make drives

async function signIn(name) {
  const login = await call("POST", "/auth/loginServer", { username: name, password: key, service: "console" });
  Object.assign(session, { token: login.accessToken, user: name });
  leave();
  forgetJobs();
  $("continue").hidden = true;
  say("Signed in as " + name);
  follow();
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
  const drives = (await call("GET", "/api/files/collections/browse?itemsPerPage=250")).items;
  known = drives.every((d) => d.status.resolvedSupport) ? drives.length : 0; // Core learns of features by asking the provider
  setDrives(drives);
  $("drives").replaceChildren();
  for (const drive of drives) {
    const open = button("", () => attempt(() => { leaveJobs(); return browse("/" + drive.id); }), { className: "link" });
    open.append(icon("drive"), drive.specification.title, el("small", {}, " (" + drive.id + ")"));
    $("drives").append(el("li", {}, open));
  }
  const own = drives.find((d) => (d.status.resolvedSupport?.features || []).includes("drive.management"));
  product = own?.specification.product;
  $("drive-form").hidden = !own;
  await setUpJobs();
  if (!drives.length) $("drives").append(el("li", { className: "detail" }, "No drives yet. They appear once the connection has been approved."));
}

$("drive-form").onsubmit = (e) => {
  e.preventDefault();
  attempt(async () => {
    const title = $("drive-title").value;
    await call("POST", "/api/files/collections", { items: [{ title, product, labels: {} }] });
    $("drive-title").value = "";
    say("Created the drive “" + shown(title) + "”");
    await refresh();
  });
};
whenDrivesChange(refresh);
$("folder-terminal").onclick = () => folderTerminal(viewed());
$("user").onchange = () => attempt(() => signIn($("user").value));
$("connect").onclick = () => attempt(async () => {
  const res = await call("POST", "/api/providers/integration/connect", { provider: session.provider });
  const link = $("continue");
  link.href = res.redirectTo;
  link.hidden = false;
  link.focus();
  say("The provider has a page for you.");
});
$("disconnect").onclick = () => attempt(async () => {
  await call("POST", "/api/providers/integration/clearConnection", { provider: session.provider });
  leave();
  say("Disconnected");
  await refresh();
});

attempt(async () => {
  const s = await call("GET", "/api/dev/state");
  session.provider = s.provider;
  for (const user of s.users) $("user").append(new Option(user.name, user.name));
  if (s.users.length) await signIn(s.users[0].name);
  // The approval happens elsewhere: look again while the page is visible and the user waits.
  setInterval(() => {
    if (session.token && !document.hidden && (!$("connect").hidden || !known)) refresh().catch(() => {});
  }, 1500);
});
