// The way in: a link's #code is used at once; a token is sent without leaving the page, so that a refusal can be read here.

const form = document.getElementById("login-form");
const note = document.getElementById("login-note");
const next = form.elements.next.value;

async function logIn(shown) {
  note.className = "";
  note.textContent = "One moment …";
  try {
    const answer = await fetch("/login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...shown, next }),
    });
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return location.replace(body.next || "/");
    refuse(body.detail || "This did not open the rig.");
  } catch {
    refuse("The rig did not answer. Try again in a moment.");
  }
}

function refuse(text) {
  note.className = "bad";
  note.textContent = text;
  form.elements.token.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn({ token: form.elements.token.value.trim() });
});

if (location.hash.startsWith("#code=")) {
  const code = decodeURIComponent(location.hash.slice("#code=".length));
  history.replaceState(null, "", location.pathname + location.search); // it must not stay in the address
  logIn({ code });
}
