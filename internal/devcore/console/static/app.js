// Signing in, the connection to the provider, and the list of drives.

import { attempt, button, call, icon, key, el, put, say, session, shown, whenRefused } from "./api.js";
import { browse, leave, setDrives, viewed, whenDrivesChange } from "./files.js";
import { folderTerminal, forget as forgetJobs, leaveJobs, setUp as setUpJobs } from "./jobs.js";
import { drop, key as signingKey, load, make, upload } from "./signing.js";
import { follow } from "./tasks.js";

const $ = (id) => document.getElementById(id);
let known = 0; // drives of which everything is known
let connected = false;
let signing = false; // the provider wants signed calls
let product; // in which the user can make drives

async function signIn(name) {
  const login = await call("POST", "/auth/loginServer", { username: name, password: key, service: "console" });
  Object.assign(session, { token: login.accessToken, user: name });
  await load(name);
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
  connected = !!entry?.connected;
  signing = !!entry?.requiresMessageSigning;
  drawKey();
  // A provider that wants signed calls is connected once more by each browser.
  $("connect").hidden = !entry || (connected && (!signing || !!signingKey()?.uploaded.includes(session.provider)));
  $("disconnect").hidden = !entry || !entry.connected;
  if (!entry) {
    $("connection").textContent = "You have no allocation at any provider.";
  } else {
    $("connection").textContent = entry.providerTitle + ": " + (entry.connected ? "connected" : "not connected");
    if (entry.connected && !signing) $("continue").hidden = true;
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
  let target = res.redirectTo;
  if (signing) {
    await make(session.user, Number($("signing-form").value));
    target = await upload(session.provider, target);
    drawKey();
  }
  const link = $("continue");
  link.href = target;
  link.hidden = false;
  link.focus();
  say(signing ? "The provider has a page for you. It must show the fingerprint that you see here." : "The provider has a page for you.");
});

// drawKey shows the key with which this browser signs.
function drawKey() {
  const k = signingKey();
  $("signing").hidden = !signing;
  $("signing-have").hidden = !k;
  $("signing-choice").hidden = !!k;
  put($("fingerprint"), k ? k.fingerprint : "");
  put($("signing-state"), !k ? "none: one is made when you press Connect" :
    k.algorithm + ", " + (k.uploaded.includes(session.provider) ? "given to the provider" : "not given to the provider"));
}

$("signing-drop").onclick = () => attempt(async () => {
  await drop();
  say("Deleted the key. The provider still knows it until you revoke it there: ucloud keys revoke");
  await refresh();
});
whenRefused(() => {
  $("continue").hidden = true;
  refresh().catch(() => {});
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
    if (session.token && !document.hidden && (!connected || !known)) refresh().catch(() => {});
  }, 1500);
});
