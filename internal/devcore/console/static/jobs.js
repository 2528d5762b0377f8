// The list of jobs, the form with which one submits them, and the page of a job.

import { attempt, button, call, el, owned, plural, put, say, session, shown, socket, time } from "./api.js";
import { browse, leave } from "./files.js";
import { fields, values } from "./jobform.js";
import { close as closeTerminal, open as openTerminal } from "./terminal.js";

const $ = (id) => document.getElementById(id);
const final = ["SUCCESS", "FAILURE", "EXPIRED"];
const words = {
  IN_QUEUE: "waiting", RUNNING: "running", SUSPENDED: "suspended", SUCCESS: "done", FAILURE: "failed", EXPIRED: "out of time",
};
const maxLog = 1 << 20; // characters of a log that stay in the page
let compute = { applications: [], machines: [], projects: [] };
let told = ""; // compute as it came
let view = null; // the job that is shown

const workspace = (project) => (project ? { Project: project } : {});

// setUp asks what there is, and shows the part of the page about jobs if there is any.
export async function setUp() {
  const answer = await call("GET", "/api/dev/compute"), text = JSON.stringify(answer);
  if (text === told) { // what somebody is typing stays
    await list();
    return;
  }
  told = text;
  compute = answer;
  $("folder-terminal").hidden = !compute.machines.some((m) => m.features.includes("jobs.native.terminal"));
  $("jobs-section").hidden = !compute.machines.length || !compute.applications.length;
  if ($("jobs-section").hidden) return;
  const keep = $("job-app").value;
  $("job-app").replaceChildren(...compute.applications.map((a) =>
    new Option(a.metadata.title || a.metadata.name, a.metadata.name + "@" + a.metadata.version)));
  if (keep) $("job-app").value = keep;
  $("job-machine").replaceChildren(...compute.machines.map((m, i) =>
    new Option(m.product.name + " (" + plural(m.product.cpu || 0, "core") + ", " + (m.product.memoryInGigs || 0) + " GB)", String(i))));
  $("job-project").replaceChildren(new Option("My workspace", ""), ...compute.projects.map((p) => new Option(p.title, p.id)));
  $("job-project-line").hidden = !compute.projects.length;
  form();
  await list();
}

// leaveJobs shows neither job nor form.
export function leaveJobs() {
  hide();
  $("job-form").hidden = true;
}

// forget is for another user.
export function forget() {
  leaveJobs();
  told = "";
  $("jobs").replaceChildren();
}

const application = () => compute.applications.find((a) => a.metadata.name + "@" + a.metadata.version === $("job-app").value);

function form() {
  const app = application();
  if (!app) return;
  put($("job-description"), app.metadata.description || "");
  const limit = app.invocation.tool.tool?.description.defaultTimeAllocation;
  if (limit && limit.hours + limit.minutes > 0) {
    $("job-hours").value = limit.hours;
    $("job-minutes").value = limit.minutes;
  }
  $("job-fields").replaceChildren(...fields(app.invocation.parameters || []));
}

async function list() {
  if (!session.token || $("jobs-section").hidden) return;
  const page = await call("GET", "/api/jobs/browse?itemsPerPage=250");
  const rows = page.items.slice(0, 50);
  const have = new Map([...$("jobs").children].map((li) => [li.dataset.job, li]));
  rows.forEach((j, i) => {
    owned(j);
    let li = have.get(j.id);
    if (!li) {
      li = el("li", {}, button("", () => attempt(() => show(j.id)), { className: "link name" }), el("span", { className: "detail" }));
      li.dataset.job = j.id;
    }
    have.delete(j.id);
    put(li.firstChild, shown(j.specification.name || j.specification.application.name) + " (" + j.id + ")");
    put(li.lastChild, " " + (words[j.status.state] || j.status.state));
    li.dataset.state = j.status.state;
    if ($("jobs").children[i] !== li) $("jobs").insertBefore(li, $("jobs").children[i] || null);
  });
  for (const li of have.values()) li.remove();
  $("jobs-none").hidden = rows.length > 0;
}

async function submit() {
  const app = application(), machine = compute.machines[Number($("job-machine").value)];
  const spec = {
    application: { name: app.metadata.name, version: app.metadata.version },
    product: { id: machine.product.name, category: machine.product.category.name, provider: machine.product.category.provider },
    name: $("job-name").value, replicas: Number($("job-replicas").value), allowDuplicateJob: true,
    parameters: values(app.invocation.parameters || [], $("job-fields")), resources: [],
    timeAllocation: { hours: Number($("job-hours").value), minutes: Number($("job-minutes").value), seconds: 0 }, sshEnabled: false,
  };
  const res = await call("POST", "/api/jobs", { items: [spec] }, workspace($("job-project").value));
  $("job-form").hidden = true;
  say("Submitted");
  await list();
  await show(res.responses[0].id);
}

// hide shows no job.
function hide() {
  if (view?.ws) {
    view.ws.onclose = null;
    view.ws.close();
  }
  if (view) closeTerminal();
  view = null;
  $("job-section").hidden = true;
}

async function show(id) {
  leaveJobs();
  leave();
  view = { id, job: null, ws: null, logs: new Map() };
  for (const part of ["job-updates", "job-logs", "job-links"]) $(part).replaceChildren();
  $("job-section").hidden = false;
  $("job-section").dataset.job = id;
  draw(await call("GET", "/api/jobs/retrieve?" + new URLSearchParams({ id, includeUpdates: "true", includeProduct: "true", includeSupport: "true" })));
  follow(view);
}

// follow shows what happens to a job. When Core ends the session the log begins again.
function follow(v) {
  if (v !== view) return;
  v.ws = socket("/api/jobs", "jobs.follow", { id: v.id });
  v.ws.onmessage = (m) => {
    const { payload } = JSON.parse(m.data);
    if (!payload || v !== view) return;
    if (payload.initialJob) {
      $("job-logs").replaceChildren();
      v.logs.clear();
      draw(payload.initialJob);
    }
    for (const piece of payload.log || []) log(piece);
    if (payload.updates?.length || payload.newStatus) {
      v.job.updates = v.job.updates.concat(payload.updates || []);
      if (payload.newStatus) v.job.status = { ...v.job.status, ...payload.newStatus };
      for (const u of payload.updates || []) if (u.outputFolder) v.job.output.outputFolder = u.outputFolder;
      draw(v.job);
      list().catch(() => {});
    }
  };
  v.ws.onclose = () => setTimeout(() => follow(v), 2000);
}

function log({ rank, stdout, stderr }) {
  if (!stdout && !stderr) return;
  let pre = view.logs.get(rank);
  if (!pre) {
    pre = el("pre", { tabIndex: 0, "aria-label": "Log of node " + (Number(rank) + 1) });
    pre.dataset.rank = Number(rank);
    pre.length = 0;
    view.logs.set(rank, pre);
    $("job-logs").append(pre);
  }
  const end = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 20;
  for (const [text, kind] of [[stdout, "out"], [stderr, "err"]]) {
    if (!text) continue;
    pre.length += text.length;
    const last = pre.lastChild;
    if (last?.className === kind) last.append(text);
    else pre.append(el("span", { className: kind }, text));
  }
  if (pre.length > 2 * maxLog) {
    pre.replaceChildren(el("span", { className: "out" }, pre.textContent.slice(-maxLog)));
    pre.length = maxLog;
  }
  if (end) pre.scrollTop = pre.scrollHeight;
}

const has = (feature) => (view.job.status.resolvedSupport?.features || []).includes("jobs.native." + feature);

// targets are the interfaces that the job has announced (contract 21 section 5.1).
function targets(job) {
  const out = [];
  for (const u of job.updates) {
    for (const line of (u.status || "").split("\n")) {
      if (!line.startsWith("Target: ")) continue;
      try {
        out.push(JSON.parse(line.slice(8)));
      } catch { /* not ours */ }
    }
  }
  return out;
}

function draw(job) {
  if (view.job) { // what Core sends while a job is followed lacks some of it
    job.status.resolvedSupport ??= view.job.status.resolvedSupport;
    job.status.resolvedApplication ??= view.job.status.resolvedApplication;
  }
  view.job = job;
  owned(job);
  const { state } = job.status, running = state === "RUNNING", over = final.includes(state);
  put($("job-title"), shown(job.specification.name || job.specification.application.name));
  put($("job-state"), words[state] || state);
  $("job-section").dataset.state = state;
  const limit = job.specification.timeAllocation;
  put($("job-facts"), [
    job.specification.application.name, job.specification.product.id, plural(job.specification.replicas, "node"),
    limit ? "at most " + limit.hours + " h " + limit.minutes + " min" : "", job.status.startedAt ? "since " + time(job.status.startedAt) : "",
  ].filter(Boolean).join(" · "));
  while ($("job-updates").childElementCount > job.updates.length) $("job-updates").lastChild.remove();
  for (const u of job.updates.slice($("job-updates").childElementCount)) {
    const said = (u.status || "").split("\n").filter((line) => !line.startsWith("Target: ")).join("\n"); // those become buttons
    const text = [u.state ? words[u.state] || u.state : "", said, u.outputFolder ? "output in " + u.outputFolder : ""].filter(Boolean).join(": ");
    $("job-updates").append(el("li", { hidden: !text }, el("span", { className: "detail" }, time(u.timestamp) + " "), shown(text)));
  }
  $("job-end").hidden = over;
  $("job-output").hidden = !job.output.outputFolder;
  $("job-more").hidden = over || !has("extension");
  const type = job.status.resolvedApplication?.invocation.applicationType;
  const wanted = [];
  if (running && has("terminal")) {
    for (let rank = 0; rank < job.specification.replicas; rank++) {
      wanted.push(["Terminal" + (job.specification.replicas > 1 ? " on node " + (rank + 1) : ""), () => terminal(job.id, rank)]);
    }
  }
  const interfaces = targets(job);
  if (type === "WEB" || type === "VNC") interfaces.unshift({ rank: 0, type, target: null });
  for (const t of interfaces) {
    if (!running || !has(t.type === "VNC" ? "vnc" : "web")) continue;
    wanted.push([(t.type === "VNC" ? "Open desktop" : "Open interface") + (t.target ? " " + shown(t.target) : ""), () => link(job.id, t)]);
  }
  const names = wanted.map(([name]) => name).join("\n");
  if ($("job-buttons").dataset.names !== names) {
    $("job-buttons").dataset.names = names;
    $("job-buttons").replaceChildren(...wanted.map(([name, act]) => button(name, () => attempt(act))));
    if (!running) $("job-links").replaceChildren();
  }
}

async function interactive(id, rank, sessionType, target = null) {
  return (await call("POST", "/api/jobs/interactiveSession", { items: [{ id, rank, sessionType, target }] })).responses[0];
}

function terminal(id, rank) {
  openTerminal("Terminal of job " + id + (rank ? ", node " + (rank + 1) : ""), () => interactive(id, rank, "SHELL"));
}

// folderTerminal opens a shell in a folder of a drive.
export function folderTerminal(folder) {
  openTerminal("Terminal in " + shown(folder), async () =>
    (await call("POST", "/api/jobs/openTerminalInFolder", { items: [{ folder }] })).responses[0]);
}

// link shows the address of an interface: a page may open windows only while a button is being pressed.
async function link(id, t) {
  const opened = await interactive(id, t.rank, t.type, t.target), s = opened.session;
  const name = t.target ? shown(t.target) : t.type === "VNC" ? "the desktop" : "the interface";
  if (t.type === "VNC") {
    const url = new URL(s.url, opened.providerDomain).href.replace(/^http/, "ws");
    $("job-links").replaceChildren(el("li", {}, "A viewer that speaks RFB over WebSocket finds " + name + " at ", el("code", { id: "job-vnc" }, url),
      s.password ? " with the password " : "", s.password ? el("code", { id: "job-vnc-password" }, s.password) : null));
    return;
  }
  const a = el("a", { href: s.redirectClientTo, target: "_blank", rel: "noopener" }, "Open " + name);
  $("job-links").replaceChildren(el("li", {}, a));
  a.focus();
}

$("job-app").onchange = form;
$("job-new").onclick = () => {
  hide();
  leave();
  $("job-form").hidden = false;
  $("job-name").focus();
};
$("job-form").onsubmit = (e) => {
  e.preventDefault();
  attempt(submit);
};
$("job-cancel").onclick = () => { $("job-form").hidden = true; };
$("job-close").onclick = hide;
$("job-end").onclick = () => attempt(async () => {
  await call("POST", "/api/jobs/terminate", { items: [{ id: view.id }] });
  say("Asked to end the job");
});
$("job-more").onclick = () => attempt(async () => {
  await call("POST", "/api/jobs/extend", { items: [{ jobId: view.id, requestedTime: { hours: 1, minutes: 0, seconds: 0 } }] });
  say("Asked for another hour");
});
$("job-output").onclick = () => {
  const folder = view.job.output.outputFolder;
  hide();
  attempt(() => browse(folder));
};
setInterval(() => { if (!document.hidden) list().catch(() => {}); }, 2000);
