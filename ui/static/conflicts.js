// Shows conflicts between settings at the field where they can be corrected. Parts of the form are drawn only when they
// are opened, so the notes are added again then.
const form = document.querySelector("#train-form");

function mark() {
  const conflicts = props.value ?? {};
  for (const note of form.querySelectorAll(".conflict")) if (!(note.dataset.field in conflicts)) note.remove();
  for (const [id, words] of Object.entries(conflicts)) {
    const field = document.getElementById(id);
    if (!field) continue;
    let note = field.querySelector(".conflict");
    if (!note) {
      note = document.createElement("p");
      note.className = "conflict";
      note.setAttribute("role", "alert");
      note.dataset.field = id;
      field.append(note);
    }
    if (note.textContent !== words) note.textContent = words;
  }
}
new MutationObserver(mark).observe(form, { childList: true, subtree: true });
watch("value", mark);
mark();
