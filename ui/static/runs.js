// The buttons beside a run and a file: another name, and the bin.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.bin, button.rename");
  if (!button) return;
  const { run = "", file = "", label = "", name = "" } = button.dataset;
  if (button.classList.contains("rename")) {
    const wanted = prompt("[[A new name for this run:]]", name);
    if (wanted && wanted !== name) trigger("select", { run, name: wanted });
    return;
  }
  const asked = run ? "[[Move the run {name} with all its files to the bin?]]" : "[[Move {name} to the bin?]]";
  if (confirm(asked.replace("{name}", () => label))) trigger("delete", { run, file });
});
