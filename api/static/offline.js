// The service worker: when the rig is off, it shows the page as it was, and says how old that is.
// It keeps only pages that the server marks with `Overnight-Keep`, and their style and script. Nothing else passes through it:
// no API call, no stream, no form, nothing with an Authorization header, no address with a query (a token could stand there).

const KEPT = "overnight-kept-1";
const MOST_PAGES = 12;
const PROXY_SAYS_AWAY = [502, 504]; // of a proxy in front of a rig that is off; the rig's own 503 says more than an old page
const AT = "x-kept-at";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const request = event.request;
  const url = new URL(request.url);
  if (url.origin === self.location.origin && url.pathname === "/logout") return event.waitUntil(caches.delete(KEPT));
  if (request.method !== "GET" || url.origin !== self.location.origin || request.headers.has("authorization")) return;
  if (request.mode === "navigate") event.respondWith(page(event, url));
  else if (url.pathname.startsWith("/static/") && url.searchParams.has("v")) event.respondWith(asset(request));
});

async function page(event, url) {
  try {
    const answer = await fetch(event.request);
    if (!PROXY_SAYS_AWAY.includes(answer.status)) {
      event.waitUntil(remember(url, answer.clone()));
      return answer;
    }
  } catch {
    // the rig does not answer: what was kept says more than the browser's own page
  }
  return (await remembered(url)) || nothing();
}

async function asset(request) {
  const cache = await caches.open(KEPT);
  return (await cache.match(request)) || fetch(request); // its hash stands in its address: what is kept is right
}

async function remember(url, answer) {
  if (url.pathname === "/login" && answer.ok) return caches.delete(KEPT); // whoever has to log in sees nothing of before
  if (!answer.ok || url.search || answer.headers.get("overnight-keep") !== "page") return;
  const text = await answer.text();
  const headers = new Headers(answer.headers);
  for (const name of ["content-encoding", "content-length"]) headers.delete(name);
  headers.set(AT, String(Date.now()));
  const cache = await caches.open(KEPT);
  await cache.put(url.pathname, new Response(text, { headers }));
  for (const [address] of text.matchAll(/\/static\/[\w.-]+\?v=\w+/g)) {
    if (!/\.(css|js|svg)\?/.test(address) || (await cache.match(address))) continue;
    await cache.add(address).catch(() => {}); // without its style the page can still be read
  }
  await prune(cache);
}

// The oldest pages go, and with them what no page names any more.
async function prune(cache) {
  const pages = (await cache.keys()).filter((request) => !new URL(request.url).pathname.startsWith("/static/"));
  for (const request of pages.slice(0, Math.max(0, pages.length - MOST_PAGES))) await cache.delete(request);
  const named = new Set();
  for (const request of pages) {
    const text = await (await cache.match(request))?.text();
    for (const [address] of (text || "").matchAll(/\/static\/[\w.-]+\?v=\w+/g)) named.add(address);
  }
  for (const request of await cache.keys()) {
    const url = new URL(request.url);
    if (url.pathname.startsWith("/static/") && !named.has(url.pathname + url.search)) await cache.delete(request);
  }
}

async function remembered(url) {
  const cache = await caches.open(KEPT);
  const kept = (await cache.match(url.pathname)) || (await cache.match("/"));
  if (!kept) return null;
  const at = Number(kept.headers.get(AT));
  const text = await kept.text();
  const marked = text.replace(/<p class="link" id="link"[^>]*><\/p>/, note(at));
  return marked === text ? null : new Response(marked, { headers: kept.headers });
}

// Of numbers and the clock's own words only: nothing of a page's text goes into it.
function note(at) {
  const minutes = Math.max(0, Math.round((Date.now() - at) / 60000));
  const age = minutes < 1 ? "just now" : minutes < 60 ? `${minutes} min ago` : minutes < 2880 ? `${Math.round(minutes / 60)} h ago` : `${Math.round(minutes / 1440)} days ago`;
  const moment = new Date(at).toISOString().slice(0, 16);
  return `<p class="link" id="link" role="status" data-kind="kept" data-kept="${at}">The rig does not answer. This is the page as it was <time datetime="${moment}Z">${age}</time>.</p>`;
}

function nothing() {
  const text = "The rig does not answer, and no page of it was kept on this device. Open it again when the rig is on.\n";
  return new Response(text, { status: 503, headers: { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" } });
}
