// Notes at the fields of the form: which settings are changed, with a button that resets one, and which conflict, with a
// button that resolves it. Parts of the form are drawn only when they are opened, so the notes are added again then.
const form = document.querySelector("#train-form");

function noteOf(field, kind, text, action) {
  const note = document.createElement("p");
  note.className = kind;
  note.dataset.field = field.id;
  note.append(text);
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "act";
    button.textContent = action;
    button.addEventListener("click", () => trigger(kind === "conflict" ? "apply" : "undo", { field: field.id }));
    note.append(" ", button);
  }
  if (kind === "conflict") note.setAttribute("role", "alert");
  return note;
}

function mark() {
  const { conflicts = {}, changed = [], words = {} } = props.value ?? {};
  const wanted = new Map();
  for (const id of changed) wanted.set(`changed ${id}`, [words.changed, words.reset]);
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
}
new MutationObserver(mark).observe(form, { childList: true, subtree: true });
watch("value", mark);
mark();
