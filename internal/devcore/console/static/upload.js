// The client side of the upload protocol WEBSOCKET_V2, as UCloud's web client speaks it (contract 11 section 2).
//
// A session is one WebSocket for one file or one folder. Each message is binary: an opcode and its payload, all numbers
// big endian. We announce files (LISTING), the provider says which it wants (OK) or not (SKIP), we send their content
// (CHUNK), and it counts what needs no more attention (FILES_COMPLETED). When everything has been announced and the
// count has caught up, we close the socket; that is all the end there is.

import { call } from "./api.js";

const OK = 0, CHUNK = 2, SKIP = 3, LISTING = 4, FILES_COMPLETED = 5;

const listingFrame = 65536; // bytes of one LISTING message
const listingBatch = 5000; // files announced before the count has caught up
const chunkSize = 16_000_000;
const bufferLimit = 64 << 20; // bytes read and not yet taken by the network
const filesInFlight = 256;
const readTogether = 32; // small files that are read in one go, and their bytes together:
const smallFiles = 1 << 20;
const sessionsAtOnce = 5;

const utf8 = new TextEncoder();

// Upload is one session, from waiting to its end.
export class Upload {
  // target is the path of the file, or of the folder that will hold the files. files() gives the files anew at each
  // call, as {path, file}: the path is relative to the folder, and empty for a single file.
  constructor({ target, type, files, totalBytes = null, totalFiles = null }) {
    Object.assign(this, { target, type, files, totalBytes, totalFiles });
    this.reset();
  }

  reset() {
    this.state = "waiting"; // waiting, running, done, failed, stopped
    this.link = null; // the connection of this attempt; what still runs for an earlier one must find that it is over
    this.why = "";
    this.listed = 0; // announced files
    this.completed = 0; // the provider's count
    this.refused = 0; // the provider wants no content: it has the file, or cannot store it
    this.unreadable = 0;
    this.handed = 0; // bytes handed to the socket
    this.exhausted = false; // everything has been announced
    this.speed = [];
  }

  // sent is how many bytes have left this page.
  get sent() {
    return this.handed - (this.link && this.state === "running" ? Math.min(this.link.ws.bufferedAmount, this.handed) : 0);
  }

  // rate is the speed of the last seconds in bytes per second.
  rate(now = performance.now()) {
    this.speed.push([now, this.sent]);
    while (this.speed.length > 2 && now - this.speed[0][0] > 3000) this.speed.shift();
    const [then, bytes] = this.speed[0];
    return now - then < 200 ? 0 : ((this.sent - bytes) * 1000) / (now - then);
  }

  stop() {
    if (this.state === "waiting") this.state = "stopped";
    if (this.state !== "running") return;
    this.end("stopped", "");
  }

  end(state, why) {
    if (this.state !== "running") return;
    this.state = state;
    this.why = why;
    if (this.link) this.link.ws.close(1000);
    this.finish();
  }

  // live tells whether a connection is that of the attempt that is running.
  live(link) { return this.state === "running" && this.link === link; }

  // run goes through one session and returns when it has ended; state and why tell how.
  async run() {
    this.reset();
    this.state = "running";
    const attempt = this.attempt = {}, over = () => this.state !== "running" || this.attempt !== attempt;
    const ended = new Promise((resolve) => { this.finish = resolve; });
    try {
      const source = this.files()[Symbol.asyncIterator](), next = await source.next();
      if (over()) return;
      Object.assign(this, { source, next });
      if (this.next.done) {
        this.end("done", "There was nothing to upload. Folders without files are not uploaded.");
        return;
      }
      const res = await call("POST", "/api/files/upload", {
        items: [{ id: this.target, type: this.type, supportedProtocols: ["CHUNKED", "WEBSOCKET"], conflictPolicy: "RENAME" }],
      });
      if (over()) return;
      const { endpoint, protocol } = res.responses[0];
      if (protocol !== "WEBSOCKET_V2" && !(protocol === "WEBSOCKET" && this.type === "FOLDER")) {
        throw new Error("The provider wants the protocol " + protocol + ", which this page does not know");
      }
      this.open(endpoint);
    } catch (e) {
      if (!over()) this.end("failed", e.message);
    }
    await ended;
  }

  open(endpoint) {
    const ws = new WebSocket(endpoint.replace(/^http/, "ws"));
    const link = {
      ws,
      known: new Map(), // id -> file, until its content has been sent
      wanted: [], // ids with OK; the last one is read first
      reading: 0, // files being read
      reserved: 0, // bytes being read
    };
    this.link = link;
    ws.binaryType = "arraybuffer";
    ws.onopen = () => { if (this.live(link)) this.announce(link); };
    ws.onmessage = (m) => { if (this.live(link) && typeof m.data !== "string") this.receive(link, new DataView(m.data)); };
    ws.onclose = (e) => {
      if (this.live(link)) {
        this.end("failed",
          e.reason || (e.code === 1006 ? "The connection to the provider was lost" : "The provider closed the connection (" + e.code + ")"));
      }
    };
  }

  receive(link, view) {
    for (let at = 0; at + 5 <= view.byteLength; at += 5) {
      const op = view.getUint8(at), n = view.getInt32(at + 1);
      if (op === OK) {
        if (link.known.has(n)) link.wanted.push(n);
      } else if (op === SKIP) {
        if (link.known.delete(n)) this.refused++;
      } else if (op === FILES_COMPLETED) {
        this.completed = n;
      } else {
        this.end("failed", "The provider sent something that this page does not understand");
        return;
      }
    }
    this.pump(link);
    if (this.completed >= this.listed && !link.announcing) {
      if (this.exhausted) this.end("done", "");
      else this.announce(link);
    }
  }

  // announce lists the next batch of files.
  async announce(link) {
    link.announcing = true;
    let frame = [], length = 1;
    const flush = () => {
      if (!frame.length) return;
      const out = new Uint8Array(length);
      out[0] = LISTING;
      let at = 1;
      for (const entry of frame) { out.set(entry, at); at += entry.length; }
      frame = []; length = 1;
      link.ws.send(out);
    };
    try {
      for (let n = 0; n < listingBatch && !this.next.done && this.live(link); ) {
        const { path, file } = this.next.value;
        if (file) {
          const entry = listing(this.listed, file, utf8.encode(path));
          if (length + entry.length > listingFrame) flush();
          link.known.set(this.listed, file);
          frame.push(entry);
          length += entry.length;
          this.listed++;
          n++;
        } else {
          this.unreadable++;
        }
        const next = await this.source.next();
        if (!this.live(link)) return;
        this.next = next;
      }
      if (!this.live(link)) return;
      flush();
      this.exhausted = this.next.done;
    } catch (e) {
      if (this.live(link)) this.end("failed", e.message);
    } finally {
      link.announcing = false;
    }
    if (this.live(link) && this.exhausted && this.completed >= this.listed) this.end("done", "");
  }

  pump(link) {
    while (this.live(link) && link.reading < filesInFlight && link.wanted.length) {
      // Small files are read together: one round to the browser's file system instead of one for each.
      const ids = [];
      for (let bytes = 0; link.wanted.length && link.reading < filesInFlight && ids.length < readTogether; ) {
        bytes += link.known.get(link.wanted[link.wanted.length - 1]).size;
        if (ids.length && bytes > smallFiles) break;
        ids.push(link.wanted.pop());
        link.reading++;
      }
      this.sendAll(link, ids).finally(() => {
        link.reading -= ids.length;
        this.pump(link);
      });
    }
  }

  async sendAll(link, ids) {
    if (ids.length > 1 && (await this.sendTogether(link, ids).catch(() => false))) return;
    for (const id of ids) await this.send(link, id, link.known.get(id)).catch(() => this.skip(link, id));
  }

  // sendTogether reads several files at once. It fails, and nothing has been sent, when one of them cannot be read.
  async sendTogether(link, ids) {
    const files = ids.map((id) => link.known.get(id)), total = files.reduce((n, f) => n + f.size, 0);
    await this.room(link, total);
    if (!this.live(link)) return true;
    link.reserved += total;
    let data;
    try {
      data = await new Blob(files).arrayBuffer();
    } finally {
      link.reserved -= total;
    }
    if (!this.live(link)) return true;
    if (data.byteLength !== total) return false;
    let at = 0;
    ids.forEach((id, i) => {
      const n = files[i].size, out = message(CHUNK, id, n);
      out.set(new Uint8Array(data, at, n), 5);
      link.ws.send(out);
      this.handed += n;
      link.known.delete(id);
      at += n;
    });
    return true;
  }

  // skip tells the provider that a file cannot be read; it throws away what it has of it.
  skip(link, id) {
    if (!this.live(link)) return;
    this.unreadable++;
    link.known.delete(id);
    link.ws.send(message(SKIP, id, 0));
  }

  async send(link, id, file) {
    for (let at = 0; at < file.size || at === 0; ) {
      const n = Math.min(chunkSize, file.size - at);
      await this.room(link, n);
      if (!this.live(link)) return;
      link.reserved += n;
      let data;
      try {
        data = await file.slice(at, at + n).arrayBuffer();
      } finally {
        link.reserved -= n;
      }
      if (!this.live(link)) return;
      if (data.byteLength !== n) throw new Error("the file has changed");
      const out = message(CHUNK, id, n);
      out.set(new Uint8Array(data), 5);
      link.ws.send(out);
      this.handed += n;
      at += n;
      if (n === 0) break; // an empty file is one empty chunk
    }
    link.known.delete(id);
  }

  // room waits until n more bytes may be in memory.
  async room(link, n) {
    while (this.live(link)) {
      const held = link.reserved + link.ws.bufferedAmount;
      if (held === 0 || held + n <= bufferLimit) return;
      await new Promise((r) => setTimeout(r, 5));
    }
  }
}

function message(op, id, payload) {
  const out = new Uint8Array(5 + payload);
  out[0] = op;
  new DataView(out.buffer).setInt32(1, id);
  return out;
}

function listing(id, file, path) {
  const out = new Uint8Array(24 + path.length), view = new DataView(out.buffer);
  view.setInt32(0, id);
  view.setBigInt64(4, BigInt(file.size));
  view.setBigInt64(12, BigInt(file.lastModified));
  view.setUint32(20, path.length);
  out.set(path, 24);
  return out;
}

// Queue runs a few uploads at a time, in order.
export class Queue {
  constructor(onEnd) {
    this.uploads = [];
    this.onEnd = onEnd;
  }

  add(upload) {
    this.uploads.push(upload);
    this.advance();
  }

  retry(upload) {
    upload.reset();
    this.advance();
  }

  get running() { return this.uploads.filter((u) => u.state === "running").length; }

  advance() {
    while (this.running < sessionsAtOnce) {
      const u = this.uploads.find((u) => u.state === "waiting");
      if (!u) return;
      u.run().finally(() => {
        this.onEnd(u);
        this.advance();
      });
    }
  }
}

// singleFile is the upload of one file into a folder.
export function singleFile(folder, file) {
  return new Upload({
    target: folder + "/" + file.name, type: "FILE", totalBytes: file.size, totalFiles: 1,
    async *files() { yield { path: "", file }; },
  });
}

// fromInput makes uploads of what was chosen in a file input: one for each file, one for each folder.
export function fromInput(folder, chosen) {
  const out = [], folders = new Map();
  for (const file of chosen) {
    const path = file.webkitRelativePath;
    if (!path) {
      out.push(singleFile(folder, file));
      continue;
    }
    const slash = path.indexOf("/"), top = path.slice(0, slash);
    if (!folders.has(top)) folders.set(top, []);
    folders.get(top).push({ path: path.slice(slash + 1), file });
  }
  for (const [top, list] of folders) {
    out.push(new Upload({
      target: folder + "/" + top, type: "FOLDER", totalFiles: list.length, totalBytes: list.reduce((n, f) => n + f.file.size, 0),
      async *files() { yield* list; },
    }));
  }
  return out;
}

// fromEntries makes uploads of what was dropped. Folders are read while they are sent.
export async function fromEntries(folder, entries) {
  const out = [];
  for (const entry of entries) {
    if (entry.isFile) {
      out.push(singleFile(folder, await fileOf(entry)));
    } else {
      out.push(new Upload({ target: folder + "/" + entry.name, type: "FOLDER", files: () => walk(entry, "") }));
    }
  }
  return out;
}

const fileOf = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject));

async function* walk(folder, prefix) {
  const reader = folder.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    for (const entry of entries) {
      if (entry.isDirectory) {
        yield* walk(entry, prefix + entry.name + "/");
      } else {
        let file = null;
        try { file = await fileOf(entry); } catch { /* cannot be read: counted, not sent */ }
        yield { path: prefix + entry.name, file };
      }
    }
  }
}
