// Keeps the page fresh: one event stream tells that something changed, the server renders the parts that did.
// Nothing here makes HTML of data; texts go through textContent only.

const FRAGMENT_EVERY_MS = 1000; // at most
const IDLE_EVERY_MS = { slots: 5000, job: 3000 }; // readings and logs change without an event
const NIGHT_EVERY_MS = 60000; // it grows without an event, too
const LOST_AFTER_MS = 4000;
const OLD_AFTER_S = 15; // what is shown is older than any beat of a rig that is well
const TYPES = ["submitted", "state", "progress", "metric", "log", "rig", "deleted", "resync"];

const root = document.documentElement;
const parts = (document.body.dataset.live || "").split(" ").filter(Boolean);
const ownJob = document.body.dataset.job;
const link = document.getElementById("link");

let stream = null;
let lastId = document.body.dataset.since || "";
let retryMs = 1000;
let lostSince = 0;
let due = new Set();
let timer = 0;
let fetchedAt = 0;
let nightAt = fetchedAt;
let bornAt = Number(link.dataset.kept || Date.now()); // when the rig said what stands here

root.classList.add("js");

// -- the stream ------------------------------------------------------------------------------------------------------

function open() {
  close();
  stream = new EventSource("/api/v1/events" + (lastId ? "?since=" + encodeURIComponent(lastId) : ""));
  stream.onopen = () => {
    retryMs = 1000;
    found();
  };
  stream.onerror = () => {
    lost();
    if (stream && stream.readyState === EventSource.CLOSED) {
      // an answer that is no stream: the browser does not try again by itself
      setTimeout(() => document.hidden || open(), retryMs);
      retryMs = Math.min(30000, retryMs * 2);
    }
  };
  for (const type of TYPES) stream.addEventListener(type, (event) => happened(type, event));
}

function close() {
  if (stream) stream.close();
  stream = null;
}

function happened(type, event) {
  if (event.lastEventId) lastId = event.lastEventId;
  if (ownJob) {
    if (type === "resync" || type === "rig" || jobOf(event) === ownJob) want(parts);
  } else if (type === "progress" || type === "metric" || type === "log") {
    want(parts.includes("slots") ? ["slots"] : parts);
  } else {
    want(parts);
  }
}

function jobOf(event) {
  try {
    const job = JSON.parse(event.data).job;
    return job && typeof job === "object" ? String(job.id) : String(job ?? "");
  } catch {
    return "";
  }
}

// -- fragments ---------------------------------------------------------------------------------------------------------

function want(names) {
  for (const name of names) due.add(name);
  if (!timer && due.size) timer = setTimeout(fetchDue, Math.max(0, fetchedAt + FRAGMENT_EVERY_MS - Date.now()));
}

async function fetchDue() {
  const names = [...due];
  due = new Set();
  fetchedAt = Date.now();
  if (names.includes("night")) nightAt = fetchedAt;
  try {
    await Promise.all(names.map(fetchPart));
    found();
  } catch {
    lost();
  }
  fetchedAt = Date.now(); // from the end: a slow rig is asked less often
  timer = 0;
  want([]);
}

async function fetchPart(name) {
  const answer = await fetch("/fragments/" + name);
  if (answer.status === 401 || answer.redirected) {
    location.assign("/login?next=" + encodeURIComponent(location.pathname));
  } else if (answer.status === 404) {
    location.reload();
  } else if (answer.ok) {
    show(await answer.text());
  } else {
    throw new Error(String(answer.status));
  }
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").body;
  if (fresh.querySelector("#heart")) bornAt = Date.now();
  for (const part of [...fresh.children]) {
    const old = part.id && document.getElementById(part.id);
    if (old) replace(old, part);
  }
  const titled = document.querySelector("[data-title]");
  if (titled) document.title = titled.dataset.title;
}

function replace(old, fresh) {
  if (fresh.id === "columns") return replaceInside(old, fresh);
  if (old.isEqualNode(fresh) || isBeingRead(old)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  become(old, fresh);
  if (focused && document.activeElement !== focused) {
    (focused.isConnected ? focused : document.getElementById(focused.id))?.focus({ preventScroll: true });
  }
  for (const log of old.querySelectorAll("pre.log")) log.scrollTop = log.scrollHeight;
}

// The columns of a job's page: part by part, so that what did not change stays as it is.
function replaceInside(old, fresh) {
  for (const part of [...fresh.querySelectorAll(":scope > div > [id]")]) {
    const same = document.getElementById(part.id);
    if (same && old.contains(same)) replace(same, part);
  }
}

// Make an element what the server says, and leave alone what is so already: the focus, an open menu, and most of the work stay.
function become(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id || old.nodeType !== Node.ELEMENT_NODE) return old.replaceWith(fresh);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const named = new Map();
  for (const child of old.children) if (child.id) named.set(child.id, child);
  let at = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const same = next.id ? named.get(next.id) : at && !at.id && at.nodeName === next.nodeName ? at : null;
    if (same && same === at) at = at.nextSibling;
    else old.insertBefore(same || next, at);
    if (same) become(same, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

// Text that is being selected, or a log that was scrolled back, is left alone.
function isBeingRead(part) {
  const selection = getSelection();
  if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return true;
  const log = part.querySelector("pre.log");
  return Boolean(log) && log.scrollHeight - log.scrollTop - log.clientHeight > 40;
}

// -- connection --------------------------------------------------------------------------------------------------------

function lost() {
  lostSince ||= Date.now();
}

function found() {
  lostSince = 0;
  if (link.dataset.kind === "kept") want(parts); // it is back: show how things are
  if (link.dataset.kind === "lost" || link.dataset.kind === "kept") say("");
}

function say(text, kind = "") {
  if (link.textContent !== text) link.textContent = text;
  link.dataset.kind = kind;
}

function tick() {
  if (document.hidden) return;
  if (lostSince && Date.now() - lostSince > LOST_AFTER_MS && link.dataset.kind !== "kept") {
    say("No connection to the rig: this is what was known before. It reconnects by itself.", "lost");
  }
  const ended = ownJob && !document.querySelector("#jobhead.queued, #jobhead.running");
  if (!ended) grow();
  const everyMs = ownJob ? IDLE_EVERY_MS.job : IDLE_EVERY_MS.slots;
  if (!ended && Date.now() - fetchedAt >= everyMs) want(!ownJob && parts.includes("slots") ? ["slots"] : parts);
  const night = document.getElementById("night");
  if (night && (night.dataset.old !== undefined || Date.now() - nightAt >= NIGHT_EVERY_MS)) want(["night"]);
}

// The heartbeat's age goes on while nothing comes, and is no good news any more when it is old.
function grow() {
  const passed = Math.round((Date.now() - bornAt) / 1000);
  for (const beat of document.querySelectorAll("[data-age]")) {
    const age = Number(beat.dataset.age) + passed;
    const text = age < 3 ? "now" : age < 120 ? `${age}\u202fs` : age < 7200 ? `${Math.round(age / 60)}\u202fmin` : `${Math.round(age / 3600)}\u202fh`;
    if (beat.textContent !== text) beat.textContent = text;
    if (passed > OLD_AFTER_S) beat.closest(".heart").className = "heart ill";
  }
}

// -- buttons -----------------------------------------------------------------------------------------------------------

function confirmed(label, question) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-title").textContent = label;
  document.getElementById("confirm-text").textContent = question;
  document.getElementById("confirm-yes").textContent = label;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// A form's button: the same request that the browser would send, but the page stays.
async function send(form, button) {
  const url = button.getAttribute("formaction") || form.getAttribute("action");
  const label = button.dataset.label || button.textContent.trim();
  const fields = new URLSearchParams(new FormData(form));
  if (button.name) fields.set(button.name, button.value);
  if (button.dataset.question && !(await confirmed(label, button.dataset.question))) return;
  fields.set("sure", "yes");
  button.disabled = true;
  say("");
  try {
    const answer = await fetch(url, { method: "POST", body: fields, headers: { Accept: "application/json" } });
    if (answer.status === 401) location.assign("/login?next=" + encodeURIComponent(location.pathname));
    else if (!answer.ok) say(`${label}: ${(await answer.json().catch(() => ({}))).detail || "refused"}`, "refused");
  } catch {
    say(`${label}: the rig did not answer. Nothing is known of it; look again in a moment.`, "refused");
  }
  button.disabled = false;
  fetchedAt = 0;
  want(parts);
}

async function copy(button) {
  const text = document.getElementById(button.dataset.copy);
  getSelection().selectAllChildren(text);
  // the clipboard's own interface exists on https and localhost only
  const done = navigator.clipboard ? await navigator.clipboard.writeText(text.textContent).then(() => true, () => false) : document.execCommand("copy");
  if (!done) return;
  getSelection().removeAllRanges();
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy) copy(button);
  const block = event.target.closest("[data-to]"); // a run in the timeline; the same jobs stand in the lists
  if (block?.dataset.to.startsWith("/")) location.assign(block.dataset.to);
});

document.addEventListener("submit", (event) => {
  if (event.target.dataset.acts === undefined || !event.submitter) return;
  event.preventDefault();
  send(event.target, event.submitter);
});

// -- start, and rest while nobody looks ------------------------------------------------------------------------------------

function wake() {
  open();
  fetchedAt = 0;
  want(parts);
}

if (parts.length) {
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : wake()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => event.persisted && wake());
  setInterval(tick, 1000);
  if (!document.hidden) open();
  fetchedAt = nightAt = Date.now();
}
for (const log of document.querySelectorAll("pre.log")) log.scrollTop = log.scrollHeight;
if (isSecureContext && navigator.serviceWorker) {
  addEventListener("load", () => navigator.serviceWorker.register("/static/offline.js", { scope: "/" }).catch(() => {}));
}
