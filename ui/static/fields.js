// What people enter is stored field by field when typing pauses and when the page is left, under project, name and number,
// as requests may arrive in another order. Until the server has it, it is kept, also for the next page of this tab.
const STORE = "limner-typed-fields", TAB = "limner-tab", PAUSE = 300, AGAIN = 3000; // milliseconds
const UNDECIDED = [401, 403, 408, 429]; // the session has ended, or the server has too much to do: it may be taken later
const MOST = 60_000; // bytes of a request that may outlive its page, a little less than what browsers allow
const NAMES = /** @type {Record<string, string>} */ ({ trigger: "trigger", "train-trigger": "trigger", class: "class" });
const isStored = (/** @type {string} */ id) => id in NAMES || id === "name" || id.startsWith("form-"); // see form_notes.js
const drafts = /** @type {Map<string, Typed>} */ (new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]")));
// Pages of a tab come one after the other, so that they count on together. A tab that is duplicated is another one, although
// browsers copy its storage: there, the name lies only between two pages.
const page = sessionStorage.getItem(TAB) ?? Math.random().toString(36).slice(2);
let timer = /** @type {number | undefined} */ (undefined), number = 0, isDiskFull = false;
sessionStorage.removeItem(TAB);

function keep() {
  sessionStorage.setItem(STORE, JSON.stringify([...drafts]));
}

const moment = () => ({ page, number: number = Math.max(number + 1, Date.now()) });

function later(/** @type {number} */ delay) {
  clearTimeout(timer);
  timer = setTimeout(send, delay);
}

function draft(/** @type {Record<string, string | boolean>} */ fields) {
  const project = /** @type {HTMLElement | null} */ (document.querySelector("#captions .captions"))?.dataset.project;
  if (!project) return;
  for (const [name, value] of Object.entries(fields)) {
    drafts.set(`${project}/${name}`, { project, name, value, ...moment() });
  }
  keep();
}

function post(/** @type {object} */ typed) {
  const body = JSON.stringify(typed);
  return fetch("/typed", { method: "POST", keepalive: new Blob([body]).size < MOST, body });
}

async function send() {
  clearTimeout(timer);
  const sent = [...drafts];
  if (!sent.length) return;
  const answer = await post({ fields: sent.map(([, field]) => field) }).catch(() => null);
  if (!answer || answer.status >= 500 || UNDECIDED.includes(answer.status)) {
    later(AGAIN);
    const wasFull = isDiskFull;
    isDiskFull = answer?.status === 507;
    if (answer && isDiskFull && !wasFull) await window.limner.ask((await answer.json()).refused.join(" "));
    return;
  }
  isDiskFull = false;
  for (const [key, field] of sent) if (drafts.get(key) === field) drafts.delete(key);
  keep();
  const { refused = ["[[This could not be stored.]]"] } = answer.ok ? await answer.json() : {};
  if (refused.length) await window.limner.ask(refused.join(" "));
}

window.limnerFields = { store: (fields) => (draft(fields), send()), moment, post, isStored };
document.addEventListener("input", ({ target }) => {
  const name = NAMES[target.closest?.(Object.keys(NAMES).map((id) => `#${id}`).join())?.id ?? ""];
  if (!name || !target.matches("input, textarea")) return;
  draft({ [name]: target.value });
  later(PAUSE);
});
window.addEventListener("pagehide", () => {
  sessionStorage.setItem(TAB, page);
  send();
});
window.addEventListener("pageshow", () => sessionStorage.removeItem(TAB)); // Back to a page that the browser has kept
send();
