// The buttons that rename or delete a run or a file.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button.bin, button.rename");
  if (!button) return;
  const { run = "", file = "", label = "", name = "" } = button.dataset;
  if (button.classList.contains("rename")) {
    const wanted = prompt("[[New name of this run:]]", name);
    if (wanted && wanted !== name) trigger("select", { run, name: wanted });
    return;
  }
  const asked = run ? "[[Move the run {name} with all its files to the bin?]]" : "[[Move {name} to the bin?]]";
  if (confirm(asked.replace("{name}", () => label))) trigger("delete", { run, file });
});
