// What the other parts share: the session, calls, names and numbers for people.

import { drop, intent, nameOf as callName } from "./signing.js";

// The key stands behind the # of the printed URL, so that it is in no log and no Referer.
export const key = new URLSearchParams(location.hash.slice(1)).get("key") || "";
export const session = { token: "", user: "", provider: "" };

const unexplained = {
  403: "You may not do that",
  404: "There is no such thing",
  482: "The provider does not accept calls from this browser. Press Connect to make a key and give it to the provider",
  449: "The provider has not started your session yet, try again in a moment",
  502: "The provider cannot be reached, or did not answer in time",
  503: "The provider is not ready, try again in a moment",
};

const projects = new Map(); // by the id of a drive or a job

// owned notes to which project a drive or a job belongs.
export function owned(resource) { projects.set(resource.id, resource.owner.project || null); }

// projectOf is the project in which a call is made: that of the drive or job which it is about.
function projectOf(path, body) {
  const item = body?.items?.[0] || body || queryOf(path);
  const id = String(item.oldId || item.folder || item.currentFolder || item.jobId || item.path || item.id || "");
  return projects.get(id.startsWith("/") ? driveOf(id) : id) || null;
}

const queryOf = (path) => Object.fromEntries(new URLSearchParams(path.split("?")[1]));

let onRefused = () => {};

// whenRefused is for the answer with which a provider says that it does not accept what was signed, or that nothing was. The key
// is deleted, as the web client does it.
export function whenRefused(f) { onRefused = f; }

export async function refused() {
  await drop();
  onRefused();
}

// call makes a call at Core. Its error is a sentence for people.
export async function call(method, path, body, headers = {}) {
  let res;
  const signed = await intent(callName(method, path), session, headers.Project || projectOf(path, body), body || queryOf(path));
  if (signed) headers = { ...headers, "UCloud-Signed-Intent": signed };
  try {
    res = await fetch(path, {
      method,
      headers: { Authorization: "Bearer " + session.token, "X-Dev-Key": key, ...(body ? { "Content-Type": "application/json" } : {}), ...headers },
      body: body ? JSON.stringify(body) : undefined,
    });
  } catch {
    throw new Error("Core cannot be reached");
  }
  const data = await res.json().catch(() => ({}));
  if (res.status === 482) {
    await refused();
    throw new Error(unexplained[482]);
  }
  if (!res.ok) throw new Error((data.why || unexplained[res.status] || "The call failed") + " (" + res.status + ")");
  return data;
}

// socket opens one of Core's WebSockets; the first message says who asks and for what.
export function socket(path, name, payload) {
  const ws = new WebSocket(location.origin.replace(/^http/, "ws") + path);
  ws.addEventListener("open", async () => {
    const signed = await intent(name, session, projectOf(path, payload), payload);
    ws.send(JSON.stringify({ call: name, streamId: "0", bearer: session.token, project: null, payload, ...(signed ? { signedIntent: signed } : {}) }));
  });
  return ws;
}

let fade = 0;

// say shows one line; an error stays until the next one.
export function say(text, isError = false) {
  const m = document.getElementById("message");
  m.textContent = text;
  m.className = isError ? "error" : "";
  m.setAttribute("role", isError ? "alert" : "status");
  clearTimeout(fade);
  if (text && !isError) fade = setTimeout(() => { m.textContent = ""; }, 8000);
}

// attempt runs an action and shows its failure instead of losing it.
export async function attempt(action) {
  try {
    return await action();
  } catch (e) {
    say(e.message, true);
  }
}

export const baseName = (path) => path.slice(path.lastIndexOf("/") + 1);
export const parentOf = (path) => path.slice(0, path.lastIndexOf("/"));
export const driveOf = (path) => path.split("/")[1];

// shown makes a file name readable: line breaks, control bytes, what would turn the direction of the text, and bytes that
// are no UTF-8 (which the provider sends as U+10FE80 to U+10FEFF) become visible. Everything else stays as it is.
export function shown(name) {
  return name.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\u{10fe80}-\u{10feff}]/gu, (c) => {
    const n = c.codePointAt(0);
    if (n < 0x20) return String.fromCodePoint(0x2400 + n);
    if (n === 0x7f) return "\u2421";
    if (n >= 0x10fe80) return "\\x" + (n - 0x10fe00).toString(16);
    return "\u27e8U+" + n.toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  });
}

// el makes an element. Strings become text, never markup.
export function el(tag, properties = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(properties)) {
    if (k in e) e[k] = v;
    else e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c !== null));
  return e;
}

// nameOf is an element with a file name in it, whatever the name is.
export const nameOf = (path) => el("bdi", { className: "name" }, shown(baseName(path)));

// put sets a text only when it is another one: what has not changed must stay the same node, for the mouse that is
// just pressing it and for whoever reads it aloud.
export function put(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

export function icon(id) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + id);
  svg.append(use);
  return svg;
}

export function button(text, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, text);
}

export function size(n) {
  if (n === null || n === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + units[i];
}

export function time(ms) {
  if (ms <= -62135596800000) return "";
  const d = new Date(ms);
  const two = (n) => String(n).padStart(2, "0");
  return d.getFullYear() + "-" + two(d.getMonth() + 1) + "-" + two(d.getDate()) + " " + two(d.getHours()) + ":" + two(d.getMinutes());
}

export const plural = (n, what) => n.toLocaleString("en") + " " + what + (n === 1 ? "" : "s");
