// What the form of the settings shows beside its fields: which are changed, with their usual value and a button that
// resets one or a group; which conflict, with a button that resolves it; and the search. Parts of the form are drawn
// only when they are opened, so everything is marked again then.
const form = document.querySelector("#train-form");
const FOLDED = "limner-folded-groups";
const folded = /** @type {Set<string>} */ (new Set(JSON.parse(localStorage.getItem(FOLDED) ?? "[]")));
const view = /** @type {View<FormNotes>} */ (props);
const plain = (/** @type {string} */ text) => text.toLowerCase().normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "");
const fieldsOf = (/** @type {HTMLElement} */ section) => [...section.querySelectorAll("[id^='form-']")];

function withText(/** @type {string} */ tag, /** @type {string} */ text, /** @type {Attributes} */ attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function noteOf(/** @type {HTMLElement} */ field, /** @type {string} */ kind, /** @type {string} */ text, /** @type {string} */ action) {
  const note = withText("p", text, { class: kind, "data-field": field.id });
  if (action) {
    const button = withText("button", action, { type: "button", class: "act" });
    button.addEventListener("click", () => {
      if (kind === "conflict") trigger("apply", { field: field.id });
      else trigger("undo", { fields: [field.id] });
    });
    note.append(" ", button);
  }
  if (kind === "conflict") note.setAttribute("role", "alert");
  return note;
}

function mark() {
  const { conflicts = {}, changed = {}, words } = view.value ?? {};
  const wanted = /** @type {Map<string, [text: string, action: string]>} */ (new Map());
  for (const [id, usual] of Object.entries(changed)) wanted.set(`changed ${id}`, [usual, words?.reset ?? ""]);
  for (const [id, { reason, fix }] of Object.entries(conflicts)) wanted.set(`conflict ${id}`, [reason, fix]);
  for (const note of form.querySelectorAll("p.changed, p.conflict")) {
    const text = wanted.get(`${note.className} ${note.dataset.field}`);
    if (text?.filter(Boolean).join(" ") !== note.textContent) note.remove();
  }
  for (const [key, [text, action]] of wanted) {
    const [kind, id] = key.split(" ");
    const field = document.getElementById(id);
    if (field && !field.querySelector(`p.${kind}`)) field.append(noteOf(field, kind, text, action));
  }
  for (const section of form.querySelectorAll(".section")) markGroup(section, changed, conflicts);
}

function markGroup(/** @type {HTMLElement} */ section, /** @type {object} */ changed, /** @type {object} */ conflicts) {
  const head = section.querySelector(".fold"), reset = section.querySelector(".reset-group");
  if (!head) return;
  const ids = fieldsOf(section).map((field) => field.id);
  const count = ids.filter((id) => id in changed).length;
  const closed = folded.has(head.dataset.group) && !ids.some((id) => id in conflicts);
  section.classList.toggle("folded", closed);
  if (head.getAttribute("aria-expanded") !== String(!closed)) head.setAttribute("aria-expanded", !closed);
  reset.hidden = !count;
  const text = reset.dataset.text.replace("{n}", String(count));
  if (reset.textContent !== text) reset.textContent = text;
}

function find(/** @type {string} */ query) {
  const words = query.split(/\s+/).map(plain).filter(Boolean);
  let number = 0;
  for (const section of form.querySelectorAll(".section")) {
    const title = plain(section.querySelector("h2").textContent);
    const matching = fieldsOf(section).filter((field) => {
      const text = title + plain(field.textContent) + plain(field.id);
      const matches = words.every((word) => text.includes(word));
      field.classList.toggle("unmatched", !matches);
      return matches;
    });
    number += matching.length;
    section.classList.toggle("unmatched", !matching.length);
    section.classList.toggle("searched", words.length > 0);
  }
  form.querySelector(".found").textContent = number ? "" : view.value?.words?.none ?? "";
}

let storing = Promise.resolve();
window.limnerForm = {
  // What was edited, before the form is filled anew: the answer may change what is stored. One after the other, so that
  // the requests to fill it leave in the order in which they were asked for.
  store: () => (storing = storing.then(report)),
  save(file) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], { type: "application/toml" }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },
};

// An edit is reported when typing pauses or the field is left. A dropdown shows its choice only by losing the focus.
const PAUSE = 250;  // milliseconds
const edited = /** @type {Set<HTMLElement>} */ (new Set());
let timer = /** @type {number | undefined} */ (undefined);
function valueOf(/** @type {HTMLElement} */ field) {
  const input = field.querySelector("input, textarea");
  if (input.type === "radio") return field.querySelector("input:checked").closest("label")?.textContent?.trim() ?? "";
  return input.type === "checkbox" ? input.checked : input.value;
}
async function report() {
  clearTimeout(timer);
  const fields = Object.fromEntries([...edited].map((field) => [field.id, valueOf(field)])), isEdited = edited.size > 0;
  edited.clear();
  if (isEdited) trigger("input");
  await window.limnerFields.store(fields);
}
function later(/** @type {HTMLElement | null} */ field, /** @type {number} */ delay) {
  if (field) edited.add(field);
  clearTimeout(timer);
  timer = setTimeout(report, delay);
}
const fieldOf = (/** @type {HTMLElement} */ target) => target.closest("[id^='form-'], #name");
const isDropdown = (/** @type {HTMLElement} */ target) => target.matches("[role=combobox]");
form.addEventListener("input", ({ target }) => {
  if (target.matches("#find-setting")) find(target.value);
  else if (fieldOf(target) && !isDropdown(target)) later(fieldOf(target), target.matches("[type=checkbox], [type=radio]") ? 0 : PAUSE);
});
form.addEventListener("focusout", ({ target }) => {
  if (edited.size || isDropdown(target)) later(isDropdown(target) ? fieldOf(target) : null, 0);
});
addEventListener("pagehide", report);
form.addEventListener("click", (event) => {
  const head = event.target.closest(".fold"), section = event.target.closest(".section");
  if (head) {
    const { group } = head.dataset;
    if (!folded.delete(group)) folded.add(group);
    localStorage.setItem(FOLDED, JSON.stringify([...folded]));
    mark();
  } else if (section && event.target.closest(".reset-group")) {
    trigger("undo", { fields: fieldsOf(section).map((field) => field.id) });
  }
});
new MutationObserver(mark).observe(form, { childList: true, subtree: true });
watch("value", mark);
mark();
