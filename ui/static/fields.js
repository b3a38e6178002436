// What is typed into fields without a button is sent under its project and its name when typing pauses, and when the page
// is left. Until the server says that it has it, it is kept here, also for the next page of this tab.
const STORE = "limner-typed-fields", PAUSE = 300, AGAIN = 3000; // milliseconds
const NAMES = /** @type {Record<string, string>} */ ({ trigger: "trigger", "train-trigger": "trigger", class: "class", name: "name" });
const drafts = /** @type {Map<string, Typed>} */ (new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]")));
let timer = /** @type {number | undefined} */ (undefined);

function keep() {
  sessionStorage.setItem(STORE, JSON.stringify([...drafts]));
}

function later(/** @type {number} */ delay) {
  clearTimeout(timer);
  timer = setTimeout(send, delay);
}

async function send() {
  const sent = [...drafts];
  if (!sent.length) return;
  const request = { method: "POST", keepalive: true, body: JSON.stringify({ fields: sent.map(([, field]) => field) }) };
  const answer = await fetch("/typed", request).catch(() => null);
  if (!answer?.ok) {
    later(AGAIN);
    return;
  }
  for (const [key, field] of sent) if (drafts.get(key) === field) drafts.delete(key);
  keep();
}

document.addEventListener("input", ({ target }) => {
  const name = NAMES[target.closest?.(Object.keys(NAMES).map((id) => `#${id}`).join())?.id ?? ""];
  const project = /** @type {HTMLElement | null} */ (document.querySelector("#captions .captions"))?.dataset.project;
  if (!name || !project || !target.matches("input")) return;
  drafts.set(`${project}/${name}`, { project, name, value: target.value });
  keep();
  later(PAUSE);
});
window.addEventListener("pagehide", send);
send();
