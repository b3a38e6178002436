// The caption grid. Cards are replaced whenever the value changes, so all listeners sit on `element`.
// `typed` holds every text that is not known to be on disk; nothing leaves it before the server says so. It outlives
// a reload, which Gradio does by itself when the server was away.
const STORE = "limner-unsaved-captions";
const typed = new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]"));
const timers = new Map();
const busy = new Set();
let failure = "";
let measuring = false; // pictures are being looked at by the server
let settled = 0; // a timer: some time after the last save, the list above is drawn anew
let toFirst = false; // a page was turned with Enter: go on at its first caption

const box = () => element.querySelector(".captions");
const project = () => box()?.dataset.project ?? "";
const areas = () => [...element.querySelectorAll("textarea")];
const keyOf = (area) => project() + "/" + area.dataset.name;

function show() {
  sessionStorage.setItem(STORE, JSON.stringify([...typed]));
  const status = element.querySelector(".save");
  if (!status) return;
  const text = failure
    ? "[[Not saved: {reason} Your text is kept here and will be tried again.]]".replace("{reason}", () => failure)
    : typed.size ? "[[Saving…]]" : areas().length ? "[[All captions are saved.]]" : "";
  status.textContent = text;
  status.classList.toggle("bad", failure !== "");
}

function later(key, delay) {
  clearTimeout(timers.get(key));
  timers.set(key, setTimeout(() => save(key), delay));
}

function tell(name, answer) {
  for (const card of element.querySelectorAll(".card")) {
    if (card.dataset.name !== name) continue;
    const tokens = card.querySelector(".tokens");
    tokens.textContent = answer.tokens;
    tokens.classList.toggle("long", answer.long !== "");
    card.querySelector(".badges").replaceChildren(...answer.badges.map((text) => {
      const badge = document.createElement("span");
      badge.textContent = text;
      return badge;
    }));
  }
}

async function save(key) {
  clearTimeout(timers.get(key));
  timers.delete(key);
  if (busy.has(key) || !typed.has(key)) return;
  busy.add(key);
  const sent = typed.get(key);
  let answer = null;
  try {
    answer = await server.save_caption(sent);
  } catch (error) {
    answer = null;
  }
  busy.delete(key);
  if (answer && answer.ok === true) {
    failure = "";
    if (typed.get(key) === sent) typed.delete(key);
    else if (typed.has(key)) later(key, 0);
    if (sent.project === project()) tell(sent.name, answer);
    clearTimeout(settled);
    settled = setTimeout(() => trigger("edit"), 1500);
  } else if (typed.has(key)) {
    failure = (answer && answer.error) || "[[the server does not answer.]]";
    later(key, 3000);
  }
  show();
}

function move(area, by) {
  const all = areas();
  const next = all[all.indexOf(area) + by];
  if (next) {
    next.focus();
    next.select();
  } else if (by > 0 && Number(box().dataset.page) < Number(box().dataset.last)) {
    toFirst = true;
    trigger("select", { page: Number(box().dataset.page) + 1 });
  }
}

// The server looks at new pictures a few at a time; when it is done, all is drawn with what was found.
async function measure() {
  if (measuring || !Number(box()?.dataset.left)) return;
  measuring = true;
  const name = project();
  let answer = { ok: true, left: 1 };
  while (answer?.ok && answer.left > 0 && name === project()) {
    try {
      answer = await server.measure({ project: name });
    } catch (error) {
      answer = null;
    }
  }
  measuring = false;
  if (answer?.ok) trigger("end"); // "load" would be called by Gradio itself as well
}

element.addEventListener("input", (event) => {
  const area = event.target.closest("textarea");
  if (!area) return;
  const key = keyOf(area);
  typed.set(key, { project: project(), name: area.dataset.name, text: area.value });
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
  const remove = event.target.closest(".remove");
  const page = event.target.closest(".page");
  if (remove) {
    const key = project() + "/" + remove.dataset.name;
    clearTimeout(timers.get(key));
    typed.delete(key);
    show();
    trigger("delete", { name: remove.dataset.name });
  } else if (page) {
    trigger("select", { page: Number(page.dataset.page) });
  } else if (event.target.closest(".all")) {
    trigger("select", { all: true });
  }
});
element.addEventListener("change", (event) => {
  if (event.target.matches(".order")) trigger("select", { order: event.target.value });
});
// Before something is done with all captions: what was typed last has to be on disk.
window.limnerSaved = async () => {
  for (let tries = 0; typed.size && tries < 50; tries += 1) {
    for (const key of typed.keys()) save(key);
    await new Promise((resume) => setTimeout(resume, 100));
  }
};
// A textarea that was typed in shows its own text, not the new value, unless it is told to.
watch("value", () => {
  for (const area of areas()) area.value = typed.get(keyOf(area))?.text ?? area.defaultValue;
  for (const key of typed.keys()) if (!timers.has(key)) later(key, 0);
  if (toFirst) areas()[0]?.focus();
  toFirst = false;
  show();
  measure();
});
// Which folder each file of an added folder lies in: Gradio passes on the bare names alone.
document.addEventListener("change", (event) => {
  if (event.target.closest?.("#folder")) {
    window.limnerFolder = [...(event.target.files ?? [])].map((file) => file.webkitRelativePath);
  }
}, true);
show();
measure();
