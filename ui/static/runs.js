// The buttons of a run or a file. A run is deleted at once, as it can be restored. If that fails, it stands there as before.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("button.bin, button.rename, button.again, button.copy");
  const { run = "", file = "", label = "", name = "", text = "" } = /** @type {DOMStringMap} */ (button?.dataset ?? {});
  if (button?.matches(".copy")) {
    await navigator.clipboard.writeText(text);
    button.textContent = "[[Copied]]";
  } else if (button?.matches(".again")) trigger("apply", { run });
  else if (button?.matches(".rename")) {
    const wanted = await window.limner.ask("[[New name of this run:]]", name);
    if (wanted && wanted !== name) trigger("select", { run, name: wanted });
  } else if (button) {
    if (run) button.closest(".run-row")?.classList.add("leaving");
    else if (!(await window.limner.ask("[[Move {name} to the bin?]]".replace("{name}", () => label)))) return;
    trigger("delete", { run, file });
  }
});
element.addEventListener("animationend", ({ target }) => { target.classList.remove("leaving"); });
