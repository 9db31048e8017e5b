// Keeps parts of a page up to date: an element with data-live is replaced by what that address answers, when that has changed.
// What comes is markup that the server rendered; this function is the one place of all scripts that takes any.
const policy = window.trustedTypes?.createPolicy("firkin", { createHTML: (text) => text }) ?? { createHTML: (text) => text };
const EVERY_MS = 2000;
const AFTER_FAILURE_MS = 10000;

async function refresh(part, known) {
  const answer = await fetch(part.dataset.live, {
    headers: known.tag ? { "if-none-match": known.tag } : {},
    credentials: "same-origin",
    redirect: "error",
    signal: AbortSignal.timeout(AFTER_FAILURE_MS),
  });
  if (answer.status === 401) return location.reload();
  if (answer.status !== 200) return;
  known.tag = answer.headers.get("etag");
  const text = await answer.text();
  // Whoever types or reads with the keyboard in there is not disturbed.
  if (part.contains(document.activeElement) || part.querySelector("details[open]")) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = policy.createHTML(text);
  part.replaceChildren(fresh.content);
}

for (const part of document.querySelectorAll("[data-live]")) {
  const known = {};
  const turn = async () => {
    let wait = EVERY_MS;
    if (!document.hidden) {
      try {
        await refresh(part, known);
      } catch {
        wait = AFTER_FAILURE_MS;
      }
    }
    setTimeout(turn, wait);
  };
  setTimeout(turn, EVERY_MS);
}
