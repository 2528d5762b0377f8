// A terminal: the emulator xterm.js on a shell session of the provider (contract 21 section 4).

import { attempt, button, put, session } from "./api.js";

const $ = (id) => document.getElementById(id);
let current = null;

// base64 of UTF-8 text, as browsers name the user to the provider.
const hint = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

// withSheets runs something that makes <style> elements, which the page's policy does not let work, and gives each a style
// sheet made by script instead, which it does.
function withSheets(run) {
  const make = document.createElement;
  document.createElement = function (tag, ...rest) {
    const e = make.call(this, tag, ...rest);
    if (tag === "style") {
      const sheet = new CSSStyleSheet();
      document.adoptedStyleSheets.push(sheet);
      Object.defineProperty(e, "textContent", { set: (text) => sheet.replaceSync(text), get: () => "" });
    }
    return e;
  };
  try {
    run();
  } finally {
    delete document.createElement;
  }
}

// open shows a terminal. ask gets a new session from Core, at the start and after the connection was lost.
export function open(title, ask) {
  close();
  const sheets = document.adoptedStyleSheets.length;
  const emulator = new globalThis.Terminal({ cursorBlink: true, scrollback: 10000, fontFamily: "monospace", fontSize: 14 });
  const fit = new globalThis.FitAddon.FitAddon();
  emulator.loadAddon(fit);
  const t = current = { emulator, fit, ask, ws: null, stream: 0, tries: 0, sheets };
  put($("terminal-title"), title);
  $("terminal-section").hidden = false;
  withSheets(() => emulator.open($("terminal")));
  fit.fit();
  emulator.onData((data) => send(t, { type: "input", data }));
  emulator.onResize(({ cols, rows }) => send(t, { type: "resize", cols, rows }));
  t.watch = new ResizeObserver(() => fit.fit());
  t.watch.observe($("terminal"));
  emulator.focus();
  connect(t);
}

// close ends the terminal that is open, and with its connection the shell.
export function close() {
  const t = current;
  if (!t) return;
  current = null;
  t.watch.disconnect();
  if (t.ws) t.ws.close();
  t.emulator.dispose();
  document.adoptedStyleSheets = document.adoptedStyleSheets.slice(0, t.sheets);
  $("terminal-section").hidden = true;
  $("terminal").replaceChildren();
}

function send(t, payload) {
  if (!t.ws || t.ws.readyState !== WebSocket.OPEN) return;
  t.ws.send(JSON.stringify({ call: "jobs.compute." + session.provider + ".shell.open", streamId: String(t.stream++), payload }));
}

async function connect(t) {
  status("connecting");
  const opened = await attempt(t.ask);
  if (t !== current) return;
  if (!opened) {
    lost(t, true);
    return;
  }
  const domain = (opened.session.domainOverride || opened.providerDomain).replace(/^http/, "ws");
  const id = opened.session.sessionIdentifier;
  const ws = t.ws = new WebSocket(domain + "/ucloud/" + session.provider + "/websocket?session=" + encodeURIComponent(id) +
    "&usernameHint=" + encodeURIComponent(hint(session.user)));
  let begun = false;
  t.stream = 0;
  ws.onopen = () => send(t, { type: "initialize", sessionIdentifier: id, cols: t.emulator.cols, rows: t.emulator.rows });
  ws.onmessage = (m) => {
    const { type, payload } = JSON.parse(m.data);
    if (!type || !payload) return; // a keep-alive
    if (payload.type === "initialize") {
      begun = true;
      t.tries = 0;
      status("connected");
    } else if (payload.type === "data") {
      t.emulator.write(payload.data);
    }
  };
  ws.onclose = () => lost(t, !begun);
}

// lost is the end of a connection: the protocol does not tell the end of the shell from that of the network.
function lost(t, refused) {
  if (t !== current) return;
  t.ws = null;
  const again = button("Connect again", () => connect(t));
  status(refused ? "The provider did not open a terminal. " : "The session has ended. ", again);
}

function status(text, ...more) {
  $("terminal-status").replaceChildren(text, ...more);
}

$("terminal-close").onclick = close;
