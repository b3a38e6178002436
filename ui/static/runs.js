// The buttons that use the settings of a run again, and that rename or delete a run or a file.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button.bin, button.rename, button.again");
  if (!button) return;
  const { run = "", file = "", label = "", name = "" } = button.dataset;
  if (button.classList.contains("again")) {
    trigger("apply", { run });
    return;
  }
  if (button.classList.contains("rename")) {
    const wanted = await window.limner.ask("[[New name of this run:]]", name);
    if (wanted && wanted !== name) trigger("select", { run, name: wanted });
    return;
  }
  const asked = run ? "[[Move the run {name} with all its files to the bin?]]" : "[[Move {name} to the bin?]]";
  if (await window.limner.ask(asked.replace("{name}", () => label))) trigger("delete", { run, file });
});
