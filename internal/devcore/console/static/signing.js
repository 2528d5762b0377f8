// Signing what the user asks for, so that the provider can tell that it was the user who asked and not Core
// (contract 01 section 7).
//
// UCloud's web client keeps its key as text in the local storage of the browser, where every script of the page can read and
// copy it. This page keeps it in IndexedDB as an object that the browser does not let out: a script that gets into the page
// can sign while the page is open, and take nothing home. Each user who signs in here has a key of their own.

const database = "ucloud-signing", keys = "keys";
const life = 30; // seconds that an intent is good for

// names are the calls that today's web client can name, by method and path.
const names = {
  "GET /api/files/browse": "files.browse",
  "GET /api/files/retrieve": "files.retrieve",
  "POST /api/files/move": "files.move",
  "POST /api/files/copy": "files.copy",
  "POST /api/files/trash": "files.trash",
  "POST /api/files/emptyTrash": "files.emptyTrash",
  "POST /api/files/folder": "files.createFolder",
  "POST /api/files/upload": "files.createUpload",
  "POST /api/files/download": "files.createDownload",
  "DELETE /api/files": "files.delete",
  "POST /api/files/collections": "files.collections.create",
  "DELETE /api/files/collections": "files.collections.delete",
  "POST /api/files/collections/rename": "files.collections.rename",
  "POST /api/jobs": "jobs.create",
  "GET /api/jobs/browse": "jobs.browse",
  "GET /api/jobs/retrieve": "jobs.retrieve",
  "POST /api/jobs/terminate": "jobs.terminate",
  "POST /api/jobs/extend": "jobs.extend",
  "POST /api/jobs/suspend": "jobs.suspend",
  "POST /api/jobs/unsuspend": "jobs.unsuspend",
  "POST /api/jobs/interactiveSession": "jobs.openInteractiveSession",
};

// newer are calls that came after the web client's table was made: it cannot sign them, which providers have to put up with.
// The second form, which is new as well, has names for them.
const newer = {
  "POST /api/files/collections/updateLabels": "files.collections.updateLabels",
  "POST /api/jobs/updateLabels": "jobs.updateLabels",
  "POST /api/jobs/openTerminalInFolder": "jobs.openTerminalInFolder",
  "POST /api/jobs/requestDynamicParameters": "jobs.requestDynamicParameters",
  "POST /api/tasks/pauseOrCancel": "tasks.pauseOrCancel",
};

// nameOf gives the name of a call; "" if it has none, and so no signature. A query, a slash at the end and repeated slashes do
// not count.
export function nameOf(method, path) {
  const call = method + " " + path.replace(/[?#].*$/, "").replace(/\/+/g, "/").replace(/(.)\/$/, "$1");
  return names[call] || (current?.form === 2 && newer[call]) || "";
}

function storage() {
  return new Promise((resolve, reject) => {
    const open = indexedDB.open(database, 1);
    open.onupgradeneeded = () => open.result.createObjectStore(keys, { keyPath: "user" });
    open.onsuccess = () => resolve(open.result);
    open.onerror = () => reject(open.error);
  });
}

async function stored(mode, act) {
  const db = await storage();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = db.transaction(keys, mode), request = act(transaction.objectStore(keys));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
  } finally {
    db.close();
  }
}

let current = null; // the key of the user who is signed in

// load takes up the key of a user; there may be none.
export async function load(user) {
  current = null;
  current = await stored("readonly", (s) => s.get(user)) || null;
  return current;
}

// key describes the key there is: fingerprint, algorithm, form, uploaded (names of providers). null: there is none.
export const key = () => current;

const bytes = (text) => new TextEncoder().encode(text);
const base64 = (data) => btoa(Array.from(new Uint8Array(data), (b) => String.fromCharCode(b)).join(""));
const base64url = (data) => base64(data).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

const algorithms = {
  RS256: { name: "RSASSA-PKCS1-v1_5", modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]), hash: "SHA-256" },
  EdDSA: { name: "Ed25519" },
};

// make makes a key pair. The web client's form of an intent knows RSA only; the other one takes Ed25519 where the browser has
// it.
export async function make(user, form) {
  if (current?.user === user) return;
  let algorithm = form === 2 ? "EdDSA" : "RS256", pair;
  try {
    pair = await crypto.subtle.generateKey(algorithms[algorithm], false, ["sign", "verify"]);
  } catch {
    algorithm = "RS256";
    pair = await crypto.subtle.generateKey(algorithms[algorithm], false, ["sign", "verify"]);
  }
  const der = await crypto.subtle.exportKey("spki", pair.publicKey); // a public key can always be exported
  const entry = {
    user, form, algorithm, privateKey: pair.privateKey, uploaded: [],
    pem: "-----BEGIN PUBLIC KEY-----\r\n" + base64(der).replace(/(.{64})(?=.)/g, "$1\r\n") + "\r\n-----END PUBLIC KEY-----\r\n",
    fingerprint: "SHA256:" + base64(await crypto.subtle.digest("SHA-256", der)).replace(/=+$/, ""),
  };
  await stored("readwrite", (s) => s.put(entry));
  current = entry;
}

// upload gives the public key to a provider, which answers where the user has to prove who they are there. The key is of no use
// before that has been done.
export async function upload(provider, address) {
  let res;
  try {
    res = await fetch(address, {
      method: "POST", credentials: "omit", referrerPolicy: "no-referrer",
      headers: { "Content-Type": "application/json", Accept: "application/json" }, body: JSON.stringify({ publicKey: current.pem }),
    });
  } catch {
    throw new Error("The provider cannot be reached, or does not take keys from this page");
  }
  const answer = await res.json().catch(() => ({}));
  if (!res.ok || typeof answer.redirectTo !== "string") throw new Error((answer.why || "The provider did not take the key") + " (" + res.status + ")");
  if (!current.uploaded.includes(provider)) {
    current.uploaded.push(provider);
    await stored("readwrite", (s) => s.put(current));
  }
  return answer.redirectTo;
}

// drop deletes the key.
export async function drop() {
  const was = current;
  current = null;
  if (was) await stored("readwrite", (s) => s.delete(was.user));
}

// intent signs that the user makes a call now, in a project or, null, in no project. request is what the call asks for: its
// body, or its query as an object. It is "" without a key, and for calls without a name.
export async function intent(call, { user, provider }, project, request) {
  if (!current || current.user !== user || !call) return "";
  const claims = { ...times(), call, username: user, project: project || null };
  if (current.form !== 2) return jws({ typ: "JWT", alg: current.algorithm }, claims);
  const jti = base64url(crypto.getRandomValues(new Uint8Array(16)));
  const bdy = await digest(call, request || {});
  return jws({ typ: "ucloud-intent+jwt", alg: current.algorithm }, { ...claims, aud: provider, jti, bdy });
}

// digest is what the second form says of a request (docs/protocol-intents.md). Core rewrites requests on their way, so both sides
// leave out what it adds, and what is empty, and compare the rest.
export async function digest(call, request) {
  return base64url(await crypto.subtle.digest("SHA-256", bytes(canonical(whatCounts(call, request)))));
}

const only = (object, ...members) => Object.fromEntries(members.filter((m) => m in object).map((m) => [m, object[m]]));
const composed = ["files.transfer", "jobs.attachResource", "jobs.detachResource"];

function whatCounts(call, request) {
  const last = call.slice(call.lastIndexOf(".") + 1);
  if (composed.includes(call) || last === "updateLabels" || call.startsWith("ssh_keys.") || call.startsWith("shares.")) return {};
  switch (call) {
    case "files.browse": request = only(request, "path"); break;
    case "files.retrieve": case "jobs.follow": request = only(request, "id"); break;
    case "files.streamingSearch": case "files.search": request = only(request, "query", "currentFolder"); break;
    case "jobs.create": request = { ...request, items: request.items.map(withoutExtras) }; break;
  }
  if (request.type === "bulk") {
    const { type, ...rest } = request;
    request = rest;
  }
  return reduced(request, false) ?? {};
}

function withoutExtras({ sshEnabled, parameters, ...job }) {
  if (!parameters) return job;
  const { ucMetricSampleRate, ...kept } = parameters;
  return { ...job, parameters: kept };
}

// plain undoes JSON.rawJSON, with which numbers are sent as they were typed.
const plain = (v) => (v !== null && typeof v === "object" && JSON.isRawJSON?.(v) ? Number(v.rawJSON) : v);

// reduced leaves out what Core adds and what is empty; undefined: nothing is left. The members of a map are named by the user.
function reduced(v, isMap) {
  v = plain(v);
  if (Array.isArray(v)) return v.length ? v.map((item) => keep(reduced(item, false), item)) : undefined;
  if (v === null || typeof v !== "object") return v || undefined;
  const out = {};
  for (const [name, value] of Object.entries(v)) {
    if (!isMap && name.startsWith("resolved")) continue;
    const r = reduced(value, !isMap && (name === "parameters" || name === "labels"));
    if (r !== undefined) out[name] = r;
  }
  return Object.keys(out).length ? out : undefined;
}

// keep is for the items of lists, which stay even if they are empty.
function keep(r, was) {
  if (r !== undefined) return r;
  was = plain(was);
  return Array.isArray(was) ? [] : was !== null && typeof was === "object" ? {} : was;
}

// canonical writes JSON in its one form (RFC 8785).
function canonical(v) {
  if (Array.isArray(v)) return "[" + v.map(canonical).join(",") + "]";
  if (v === null || typeof v !== "object") return JSON.stringify(v);
  return "{" + Object.keys(v).sort().map((k) => JSON.stringify(k) + ":" + canonical(v[k])).join(",") + "}";
}

// times are the times of an intent. The web client makes one and the same intent for all calls of a name in a second, and the
// provider cannot tell the second from somebody's replay of the first. Here no two are alike: the second lives longer.
let second = 0, more = 0;

function times() {
  const iat = Math.floor(Date.now() / 1000);
  more = iat === second ? more + 1 : 0;
  second = iat;
  return { iat, exp: iat + life + more % life };
}

async function jws(header, payload) {
  const text = base64url(bytes(JSON.stringify(header))) + "." + base64url(bytes(JSON.stringify(payload)));
  const algorithm = current.algorithm === "EdDSA" ? { name: "Ed25519" } : { name: "RSASSA-PKCS1-v1_5" };
  return text + "." + base64url(await crypto.subtle.sign(algorithm, current.privateKey, bytes(text)));
}
