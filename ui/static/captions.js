// The caption grid. Captions reach the page as text only: captions.html contains no values, as Gradio would run a value
// in a template as a program. Cards come and go, so all listeners sit on `element`.
// `typed` holds every text that is not known to be on disk; nothing leaves it before the server says so. It outlives
// a reload, which Gradio does by itself when the server was away.
const STORE = "limner-unsaved-captions";
const typed = /** @type {Map<string, Draft>} */ (new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]")));
const timers = /** @type {Map<string, number>} */ (new Map());
/** @type {Map<string, { text: string, at: number }>} */
const saved = new Map(); // the last saved text of each caption, and its time by the server's clock
/** @type {Map<string, string>} */
const loaded = new Map(); // each caption as the server knew it when it was last drawn or saved
/** @type {Map<string, string>} */
const conflicts = new Map(); // what another page wrote since to a caption that was typed here; the user chooses
const busy = new Set();
let failure = "";
let lost = ""; // what was said of captions whose images are gone
let measuring = false; // the server is measuring images
let settled = 0; // a timer: some time after the last save, the list above is redrawn
let toFirst = false; // a page was turned with Enter: go on at its first caption
// What the grid is to show; an answer about anything else, or older than what is shown, is not drawn.
let chosen = { page: 1, order: "name", kind: "", tag: "" };
let drawn = 0; // when the server read what is shown
/** @type {Map<string, number>} */
const removed = new Map(); // images that are no longer shown; and the server's time when they were gone
let removing = Promise.resolve();
// Removals without an answer: the next page of this tab asks for them again, as a page that is left gets none.
const REMOVALS = "limner-unanswered-removals";
const unanswered = /** @type {Set<Removal>} */ (new Set(JSON.parse(sessionStorage.getItem(REMOVALS) ?? "[]")));

const LIMIT = 30_000; // milliseconds after which an answer counts as lost
const pause = (/** @type {number} */ delay) => /** @type {Promise<null>} */ (new Promise((resume) => setTimeout(resume, delay, null)));
const answered = /** @type {<T>(request: Promise<T>) => Promise<T | null>} */ (
  (request) => Promise.race([request.catch(() => null), pause(LIMIT)])
);

const view = /** @type {View<CaptionGrid>} */ (props);
const box = () => /** @type {HTMLElement | null} */ (element.querySelector(".captions"));
const project = () => box()?.dataset.project ?? "";
const areas = () => [...element.querySelectorAll("textarea")];
const keyOf = (/** @type {HTMLElement} */ area) => project() + "/" + area.dataset.name;

function fillCard(/** @type {HTMLElement} */ card, /** @type {Card} */ item) {
  card.dataset.name = item.name;
  const find = /** @type {Find} */ (card.querySelector.bind(card));
  const image = find("img"), cut = find(".cut"), area = find("textarea"), mask = find(".mask"), remove = find(".remove");
  card.querySelector(".shape").style.setProperty("--ratio", item.ratio);
  if (image.getAttribute("src") !== item.url) image.src = item.url;
  image.alt = item.name;
  image.className = item.look;
  fillLink(card.querySelector(".shape"), item);
  mask.hidden = !item.mask;
  if (item.mask && mask.getAttribute("src") !== item.mask) mask.src = item.mask;
  cut.hidden = !item.cut;
  cut.style.inset = item.cut;
  remove.dataset.name = item.name;
  remove.setAttribute("aria-label", "[[Remove {name}]]".replace("{name}", () => item.name));
  card.querySelector(".pick").setAttribute("aria-label", "[[Select {name}]]".replace("{name}", () => item.name));
  area.dataset.name = item.name;
  area.setAttribute("aria-label", "[[Caption of {name}]]".replace("{name}", () => item.name));
  // A value that the server read before the last save would bring back an old text.
  const latest = saved.get(keyOf(area)), newer = latest && latest.at > Number(view.value?.at) ? latest : undefined;
  const text = typed.get(keyOf(area))?.text ?? newer?.text ?? item.caption;
  if (area.value !== text) area.value = text;
  if (!typed.has(keyOf(area)) && !newer) loaded.set(keyOf(area), item.caption);
  describe(card);
  showConflict(card);
  const proposed = card.querySelector(".proposed");
  proposed.hidden = !item.proposed;
  proposed.querySelector("q").textContent = item.proposed;
  const file = card.querySelector(".file");
  file.textContent = file.title = item.name;
  tell(card, item);
}

// What the viewer shows of an image; see viewer.js.
function fillLink(/** @type {HTMLAnchorElement} */ link, /** @type {Card} */ item) {
  if (link.getAttribute("href") !== item.large) link.href = item.large;
  Object.assign(link.dataset, {
    project: project(), file: item.name, facts: item.facts, size: item.size, crop: item.crop, edited: item.edited, mask: item.large_mask,
  });
}

function describe(/** @type {HTMLElement} */ card) {
  const link = card.querySelector(".shape");
  link.dataset.caption = [link.dataset.file, link.dataset.facts, card.querySelector("textarea").value].filter(Boolean).join(" · ");
}

function showConflict(/** @type {HTMLElement} */ card) {
  const note = card.querySelector(".conflict"), key = keyOf(card.querySelector("textarea"));
  note.hidden = !conflicts.has(key);
  note.querySelector("q").textContent = conflicts.get(key) || "[[(empty)]]";
}

function cardOf(/** @type {Draft} */ sent) {
  if (sent.project !== project()) return undefined;
  return [...element.querySelectorAll(".card")].find((card) => card.dataset.name === sent.name);
}

// The text that was typed here goes over the other one, or is given up for it.
function settle(/** @type {HTMLElement} */ card, /** @type {boolean} */ keep) {
  const area = card.querySelector("textarea"), key = keyOf(area);
  const theirs = conflicts.get(key) ?? "", mine = typed.get(key);
  conflicts.delete(key);
  loaded.set(key, theirs);
  if (keep && mine) {
    mine.base = theirs;
  } else {
    typed.delete(key);
    saved.delete(key);
    area.value = theirs;
    trigger("end");
  }
  showConflict(card);
  show();
  save(key);
}

function tell(/** @type {HTMLElement} */ card, /** @type {Judged} */ item) {
  const tokens = card.querySelector(".tokens");
  tokens.textContent = item.tokens;
  tokens.classList.toggle("long", item.long !== "");
  card.querySelector(".badges").replaceChildren(...item.badges.map((text) => withText("span", text)));
}

function withText(/** @type {string} */ tag, /** @type {string} */ text, /** @type {Attributes} */ attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Cards that stay are not moved, so that the one that is typed in keeps the focus.
function fillCards(/** @type {Card[]} */ items) {
  const cards = element.querySelector(".cards");
  const names = new Set(items.map((item) => item.name));
  for (const card of cards.querySelectorAll(".card")) if (!names.has(card.dataset.name)) card.remove();
  const known = new Map([...cards.querySelectorAll(".card")].map((card) => [card.dataset.name, card]));
  const blank = element.querySelector("template").content.querySelector(".card");
  let next = cards.firstElementChild;
  for (const item of items) {
    const card = known.get(item.name) ?? /** @type {HTMLElement} */ (blank.cloneNode(true));
    fillCard(card, item);
    if (card === next) next = next.nextElementSibling;
    else cards.insertBefore(card, next);
  }
}

function isWanted(/** @type {CaptionGrid} */ { asked, at }) {
  return JSON.stringify(asked) === JSON.stringify(chosen) && at >= drawn;
}

function choose(/** @type {Partial<typeof chosen>} */ change) {
  chosen = { ...chosen, page: 1, ...change };
  trigger("select");
}

function draw() {
  const { value } = view, all = box();
  if (!all || !value?.items || !isWanted(value)) return;
  [chosen, drawn] = [value.selection, value.at];
  document.documentElement.dataset.loaded = "yes"; // see style.css
  if (value.project !== project()) element.querySelector(".cards").replaceChildren();
  for (const name of /** @type {const} */ (["project", "page", "last", "left"])) all.dataset[name] = String(value[name]);
  element.querySelector(".only").hidden = !value.only;
  element.querySelector(".filter").textContent = value.only;
  element.querySelector(".proposals").hidden = !value.proposals;
  element.querySelector(".proposals .count").textContent = value.proposals;
  element.querySelector(".keys").hidden = element.querySelector(".order").hidden = !value.any;
  element.querySelector(".order").replaceChildren(...value.orders.map((order) => withText("option", order.title, {
    value: order.key, ...(order.selected && { selected: "" }),
  })));
  const items = value.items.filter(({ name }) => (removed.get(`${value.project}/${name}`) ?? 0) <= drawn);
  fillCards(items);
  element.querySelector(".empty").hidden = items.length > 0;
  element.querySelector(".none-left").hidden = !value.any;
  element.querySelector(".no-pictures").hidden = value.any;
  element.querySelector(".pages").hidden = !value.paged;
  element.querySelector(".pages").replaceChildren(...value.pages.map((page) => withText("button", page.label, {
    type: "button", class: "page" + page.current, "data-page": page.number,
  })));
}

function show() {
  sessionStorage.setItem(STORE, JSON.stringify([...typed]));
  sessionStorage.setItem(REMOVALS, JSON.stringify([...unanswered]));
  const status = element.querySelector(".save");
  if (!status) return;
  const names = [...conflicts.keys()].map((key) => typed.get(key)?.name).join(", ");
  const text = failure
    ? "[[Not saved: {reason} Your text stays here, and saving is tried again.]]".replace("{reason}", () => failure)
    : names ? "[[Not saved: another page or program changed the caption of {names}. Choose a text below the image.]]".replace("{names}", () => names)
    : typed.size ? "[[Saving…]]" : areas().length ? "[[All captions are saved.]]" : "";
  status.textContent = text;
  status.classList.toggle("bad", failure !== "" || names !== "");
}

function later(/** @type {string} */ key, /** @type {number} */ delay) {
  clearTimeout(timers.get(key));
  timers.set(key, setTimeout(() => save(key), delay));
}

async function save(/** @type {string} */ key) {
  clearTimeout(timers.get(key));
  timers.delete(key);
  const sent = typed.get(key);
  if (busy.has(key) || !sent || conflicts.has(key)) return;
  busy.add(key);
  const answer = await answered(server.save_caption(sent));
  busy.delete(key);
  if (answer?.ok === true && "conflict" in answer) {
    failure = "";
    if (typed.has(key)) conflicts.set(key, answer.conflict);
    const card = cardOf(sent);
    if (card) showConflict(card);
  } else if (answer?.ok === true && "gone" in answer) {
    failure = "";
    typed.delete(key);
    lost = [lost, answer.gone].filter(Boolean).join(" ");
    trigger("delete", { report: lost, bad: true });
  } else if (answer?.ok === true) {
    failure = "";
    loaded.set(key, answer.caption);
    const newer = typed.get(key);
    if (newer === sent) typed.delete(key);
    else if (newer) {
      newer.base = answer.caption;
      later(key, 0);
    }
    saved.set(key, { text: sent.text, at: answer.at });
    const card = cardOf(sent);
    if (card) tell(card, answer);
    clearTimeout(settled);
    settled = setTimeout(() => trigger("edit"), 1500);
  } else if (typed.has(key)) {
    failure = (answer && answer.error) || "[[the server is not responding.]]";
    later(key, 3000);
  }
  show();
}

function move(/** @type {HTMLTextAreaElement} */ area, /** @type {number} */ by) {
  const all = areas();
  const next = all[all.indexOf(area) + by], at = box()?.dataset;
  if (next) {
    next.focus();
    next.select();
  } else if (by > 0 && Number(at?.page) < Number(at?.last)) {
    toFirst = true;
    choose({ page: Number(at?.page) + 1 });
  }
}

// The server measures new images a few at a time.
async function measure() {
  if (measuring || !Number(box()?.dataset.left)) return;
  measuring = true;
  const name = project();
  let answer = /** @type {Awaited<ReturnType<Server["measure"]>> | null} */ ({ ok: true, left: 1 });
  while (answer?.ok && answer.left > 0 && name === project()) answer = await server.measure({ project: name }).catch(() => null);
  measuring = false;
  if (answer?.ok) trigger("end"); // "load" would be called by Gradio itself as well
}

// Cards disappear at once, one request after the other, and come back if that failed.
function remove(/** @type {string[]} */ names) {
  const cards = [...element.querySelectorAll(".card")].filter((card) => names.includes(card.dataset.name));
  const next = cards.at(-1)?.nextElementSibling, hasFocus = cards.some((card) => card.contains(document.activeElement));
  for (const card of cards) card.remove();
  if (hasFocus) next?.querySelector(".remove").focus();
  ask({ project: project(), names });
}

function ask(/** @type {Removal} */ removal) {
  const keys = removal.names.map((name) => `${removal.project}/${name}`);
  for (const key of keys) removed.set(key, Infinity);
  unanswered.add(removal);
  show();
  removing = removing.then(async () => {
    let answer = null; // none comes to a page that is being left, and none from a server that is starting again
    for (let tries = 0; !answer && tries < 4; tries += 1) {
      if (tries) await pause(500 * tries);
      answer = await answered(server.remove(removal));
    }
    unanswered.delete(removal);
    for (const key of keys) {
      removed.set(key, answer?.ok ? answer.at : 0);
      if (!answer?.ok) continue;
      clearTimeout(timers.get(key));
      for (const known of [timers, typed, conflicts]) known.delete(key);
    }
    show();
    if (removal.project !== project()) return;
    const report = answer?.ok ? answer.report : answer?.error ?? "[[the server is not responding.]]";
    trigger("delete", { report, bad: !answer?.ok });
    draw();
  });
}

document.addEventListener("limner-remove", ({ detail }) => remove(detail));
document.addEventListener("limner-filter", ({ detail }) => choose({ kind: "", tag: "", ...detail }));
element.addEventListener("input", (event) => {
  const area = event.target.closest("textarea"), card = event.target.closest(".card");
  if (!area || !card) return;
  const key = keyOf(area);
  const base = typed.get(key)?.base ?? loaded.get(key);
  lost = "";
  typed.set(key, { project: project(), name: area.dataset.name, text: area.value, base, ...window.limnerFields.moment() });
  describe(card);
  later(key, 600);
  show();
});
element.addEventListener("focusout", (event) => {
  const area = event.target.closest("textarea");
  if (area) save(keyOf(area));
});
element.addEventListener("keydown", (event) => {
  const area = event.target.closest("textarea");
  if (!area || event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) move(area, 1);
  else if (event.altKey && event.key === "ArrowDown") move(area, 1);
  else if (event.altKey && event.key === "ArrowUp") move(area, -1);
  else return;
  event.preventDefault();
});
element.addEventListener("click", (event) => {
  const button = event.target.closest(".remove");
  const page = event.target.closest(".page"), card = event.target.closest(".card");
  if (button) remove([button.dataset.name]);
  else if (page) {
    choose({ page: Number(page.dataset.page) });
  } else if (card && event.target.closest(".conflict button")) {
    settle(card, event.target.matches(".keep-mine"));
  } else if (event.target.matches(".keep, .discard")) {
    trigger("apply", { name: card?.dataset.name ?? "", action: event.target.matches(".keep") ? "keep" : "discard" });
  } else if (event.target.closest(".all")) {
    choose({ kind: "", tag: "" });
  }
});
element.addEventListener("change", (event) => {
  if (event.target.matches(".order")) choose({ order: event.target.value });
});
// Before all captions are changed, a run is started or what was removed last is restored, what was done here is on disk.
window.limnerSaved = async () => {
  await removing;
  for (let tries = 0; typed.size > conflicts.size && tries < 50; tries += 1) {
    for (const key of typed.keys()) save(key);
    await pause(100);
  }
};
// What is still to be saved when the page is left; the next page of this tab tries again.
window.addEventListener("pagehide", () => {
  if (!typed.size && !unanswered.size) return;
  window.limnerFields.post({ captions: [...typed.values()], removals: [...unanswered] }).catch(() => {});
});
window.limnerSelection = () => ({ ...chosen, sent: window.limnerFields.moment() });
watch("value", () => {
  // With an answer that came late, what stands beside the grid is not of now either.
  if (view.value?.items && !isWanted(view.value)) trigger("end");
  draw();
  for (const key of typed.keys()) if (!timers.has(key)) later(key, 0);
  if (toFirst) areas()[0]?.focus();
  toFirst = false;
  show();
  measure();
});
// A click on the empty list chooses images; they are dropped anywhere, see uploads.js.
element.addEventListener("click", (event) => {
  if (event.target.closest(".no-pictures")) document.querySelector("#upload input[type='file']")?.click();
});
for (const removal of [...unanswered]) ask(removal);
draw();
show();
measure();
