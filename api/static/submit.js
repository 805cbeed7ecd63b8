// The form that submits a job, while somebody types: the rig checks it and says what it would need. Without this script the
// buttons do the same. Texts go through textContent and value only.

const CHECK_AFTER_MS = 450;
const CHUNK_BYTES = 1 << 20;

const form = document.getElementById("submission");
const isDocument = form.elements.kind.value === "document";
let timer = 0;
let asked = 0;

// -- checked while it is typed -------------------------------------------------------------------------------------------

function soon() {
  clearTimeout(timer);
  timer = setTimeout(check, CHECK_AFTER_MS);
}

async function check() {
  const number = ++asked;
  const outlook = document.getElementById("outlook");
  outlook.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch("/fragments/submit", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (answer.status === 401 || answer.redirected) return location.assign("/login?next=" + encodeURIComponent(location.pathname));
    if (answer.ok && number === asked) show(await answer.text());
  } catch {
    // the rig is away for a moment: the next key asks again, and the button tells
  }
  document.getElementById("outlook").removeAttribute("aria-busy");
  preview();
}

// What a fine-tune would learn from takes the rig longer: one question at a time, and only when the answer may be another one.
let previewed = "";
let previewing = false;

async function preview() {
  const asked = new URLSearchParams(new FormData(form));
  asked.delete("key");
  if (previewing || asked.toString() === previewed) return;
  previewing = true;
  previewed = asked.toString();
  try {
    const answer = await fetch("/fragments/preview", { method: "POST", body: asked });
    if (answer.ok && !answer.redirected) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("preview");
      const old = document.getElementById("preview");
      if (fresh && !old.isEqualNode(fresh)) old.replaceWith(fresh);
    }
  } catch {
    previewed = ""; // the next key asks again
  }
  previewing = false;
  if (previewed) preview();
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  const outlook = fresh.getElementById("outlook");
  const old = document.getElementById("outlook");
  for (const details of old.querySelectorAll("details[open]")) {
    const same = outlook.querySelector("#" + details.id);
    if (same) same.open = true;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement.closest("[id]")?.id : "";
  if (!old.isEqualNode(outlook)) old.replaceWith(outlook);
  if (focused) document.getElementById(focused)?.querySelector("summary, button")?.focus({ preventScroll: true });
  const errors = new Map([...fresh.querySelectorAll("#field-errors li")].map((item) => [item.dataset.field, item.textContent]));
  if (isDocument) return tell("document", [...errors].map(([name, words]) => (name === "document" ? words : `${name}: ${words}`)).join("\n"));
  for (const place of form.querySelectorAll("p.error")) tell(place.id.slice(2), errors.get(place.id.slice(2)) || "");
}

function tell(name, words) {
  const place = document.getElementById("e-" + name);
  const input = document.getElementById("f-" + name);
  if (!place || !input) return;
  if (place.textContent !== words) place.textContent = words;
  if (words) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  if (words) input.closest("details")?.setAttribute("open", "");
}

form.addEventListener("input", (event) => event.target.type === "file" || soon());
form.addEventListener("change", (event) => (event.target.dataset.upload ? upload(event.target) : soon()));

// -- another kind keeps what fits it ---------------------------------------------------------------------------------------

for (const link of document.querySelectorAll(".kinds a:not([aria-current])")) {
  link.addEventListener("click", () => {
    if (isDocument || link.href.includes("as=document")) return;
    const url = new URL(link.href);
    for (const [name, text] of new FormData(form)) {
      if (text && typeof text === "string" && text.length < 500 && !["kind", "key"].includes(name)) url.searchParams.set(name, text);
    }
    link.href = url.href;
  });
}

// -- a field among many ------------------------------------------------------------------------------------------------------

document.getElementById("find")?.addEventListener("input", (event) => {
  event.stopPropagation();
  const wanted = event.target.value.trim().toLowerCase();
  const part = document.getElementById(event.target.dataset.find);
  for (const field of part.querySelectorAll(".field")) {
    const input = field.querySelector("[name]");
    field.hidden = !`${field.textContent} ${input.name}`.toLowerCase().includes(wanted);
  }
  for (const group of part.querySelectorAll("fieldset")) group.hidden = !group.querySelector(".field:not([hidden])");
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-apply]");
  if (!button) return;
  for (const [name, text] of Object.entries(JSON.parse(button.dataset.apply))) {
    const input = document.getElementById("f-" + name);
    if (!input) continue;
    if (input.type === "checkbox") input.checked = text === "true";
    else input.value = text;
    input.closest("details")?.setAttribute("open", "");
  }
  check();
});

// -- files, by their content -------------------------------------------------------------------------------------------------

async function upload(chooser) {
  const file = chooser.files[0];
  if (!file) return;
  const place = chooser.closest(".field");
  const bar = place.querySelector("progress");
  const said = place.querySelector("[role=status]");
  bar.hidden = false;
  chooser.disabled = true;
  try {
    said.textContent = `Reading ${file.name}…`;
    const digest = await sha256(file, (share) => (bar.value = share / 2));
    const url = "/api/v1/inputs/" + digest;
    const there = (await fetch(url, { method: "HEAD" })).ok;
    if (!there) {
      said.textContent = `Sending ${file.name}…`;
      await put(url, file, (share) => (bar.value = 0.5 + share / 2));
    }
    document.getElementById(chooser.dataset.upload).value = "sha256:" + digest;
    said.textContent = `${file.name} is on the rig${there ? " already" : ""}.`;
    check();
  } catch (error) {
    said.textContent = `${file.name} could not be sent: ${error.message}`;
  }
  bar.hidden = true;
  chooser.disabled = false;
  chooser.value = "";
}

// fetch tells no progress of what it sends
function put(url, file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Error("the rig did not answer"));
    request.onload = () => {
      if (request.status < 300) return resolve();
      let detail = "";
      try {
        detail = JSON.parse(request.responseText).detail;
      } catch {
        detail = "refused with status " + request.status;
      }
      reject(new Error(detail));
    };
    request.send(file);
  });
}

// The browser's own digest exists on https and localhost only, and wants the whole file in memory.
async function sha256(file, progress) {
  const hash = new Sha256();
  for (let at = 0; at < file.size; at += CHUNK_BYTES) {
    hash.add(new Uint8Array(await file.slice(at, at + CHUNK_BYTES).arrayBuffer()));
    progress(Math.min(1, (at + CHUNK_BYTES) / file.size));
  }
  return hash.hex();
}

// FIPS 180-4: the constants are the first 32 bits of the fractional parts of roots of the first primes.
function primes(count) {
  const found = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
}
const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) | 0;
const ROUNDS = Int32Array.from(primes(64), (p) => fraction(Math.cbrt(p)));
const START = Int32Array.from(primes(8), (p) => fraction(Math.sqrt(p)));

class Sha256 {
  constructor() {
    this.state = Int32Array.from(START);
    this.words = new Int32Array(64);
    this.rest = new Uint8Array(0);
    this.length = 0;
  }

  add(bytes) {
    this.length += bytes.length;
    let data = bytes;
    if (this.rest.length) {
      data = new Uint8Array(this.rest.length + bytes.length);
      data.set(this.rest);
      data.set(bytes, this.rest.length);
    }
    const whole = data.length - (data.length % 64);
    for (let at = 0; at < whole; at += 64) this.block(data, at);
    this.rest = data.slice(whole);
  }

  block(data, at) {
    const w = this.words;
    for (let i = 0; i < 16; i++, at += 4) w[i] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    let [a, b, c, d, e, f, g, h] = this.state;
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    const s = this.state;
    [a, b, c, d, e, f, g, h].forEach((value, i) => (s[i] = (s[i] + value) | 0));
  }

  hex() {
    const bits = this.length * 8;
    const padding = new Uint8Array(((119 - (this.length % 64)) % 64) + 9);
    padding[0] = 0x80;
    const view = new DataView(padding.buffer);
    view.setUint32(padding.length - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(padding.length - 4, bits >>> 0);
    this.add(padding);
    return [...this.state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }
}

if (isDocument ? form.elements.document.value : [...new FormData(form)].some(([name, text]) => !["kind", "key"].includes(name) && text)) check();
