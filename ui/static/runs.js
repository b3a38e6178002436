// The buttons of a run or a file. A run is deleted at once, as it can be restored. If that fails, it stands there as before.
const DELETED_WITHIN = 5000; // milliseconds
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button.bin, button.rename, button.again, button.copy");
  if (!button) return;
  const { run = "", file = "", label = "", name = "", text = "" } = button.dataset;
  if (button.classList.contains("copy")) {
    await navigator.clipboard.writeText(text);
    button.textContent = "[[Copied]]";
    return;
  }
  if (button.classList.contains("again")) {
    trigger("apply", { run });
    return;
  }
  if (button.classList.contains("rename")) {
    const wanted = await window.limner.ask("[[New name of this run:]]", name);
    if (wanted && wanted !== name) trigger("select", { run, name: wanted });
    return;
  }
  if (run) {
    const row = button.closest(".run-row");
    row?.classList.add("leaving");
    setTimeout(() => row?.classList.remove("leaving"), DELETED_WITHIN);
  } else if (!(await window.limner.ask("[[Move {name} to the bin?]]".replace("{name}", () => label)))) return;
  trigger("delete", { run, file });
});
