// The list's ticks survive its refresh, and the bar shows only when something is chosen. Without this, everything works as forms.

const chosen = new Set();

function bulk() {
  return document.getElementById("bulk");
}

function show() {
  const form = bulk();
  const bar = form?.querySelector(".bulkbar");
  if (!bar) return;
  const all = form.querySelector("input[name=all]").checked;
  const amount = form.querySelectorAll("input[name=id]:checked").length;
  bar.classList.toggle("idle", !all && !amount);
  document.getElementById("chosen-count").textContent = all ? "" : amount ? `${amount} chosen` : "";
}

function again() {
  for (const box of document.querySelectorAll("#bulk input[name=id]")) box.checked = chosen.has(box.value);
  show();
}

document.addEventListener("change", (event) => {
  const box = event.target;
  if (box.form === bulk() && box.name === "id") {
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
  }
  if (box.form?.id === "finder" && (box.type === "checkbox" || box.tagName === "SELECT")) box.form.requestSubmit();
  show();
});

// The list is replaced when a job changes; its ticks are put back.
let shown = bulk();
if (document.getElementById("joblist")) {
  for (const box of document.querySelectorAll("#bulk input[name=id]:checked")) chosen.add(box.value);
  new MutationObserver(() => {
    if (bulk() === shown) return;
    shown = bulk();
    again();
  }).observe(document.getElementById("main"), { childList: true, subtree: true });
  show();
}

// A log follows its end while one stands there; this goes back to it.
document.addEventListener("click", (event) => {
  const log = event.target.dataset?.follow && document.getElementById(event.target.dataset.follow);
  if (log) log.scrollTop = log.scrollHeight;
});
