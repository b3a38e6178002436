// What should be looked at, and the tags. What a person opened or closed stays so when the value changes.
const opened = new Map();

function restore() {
  for (const part of element.querySelectorAll("details")) {
    const key = part.className;
    part.open = opened.has(key) ? opened.get(key) : part.dataset.open === "yes" && innerWidth > 720;
  }
}
element.addEventListener("click", (event) => {
  const summary = event.target.closest("summary");
  const button = event.target.closest("button");
  if (summary) opened.set(summary.parentElement.className, !summary.parentElement.open);
  else if (button?.dataset.mend) trigger("apply", { kind: button.dataset.mend });
  else if (button?.dataset.kind) trigger("select", { kind: button.dataset.kind });
  else if (button?.dataset.tag) trigger("select", { tag: button.dataset.tag });
});
watch("value", restore);
restore();
