// The runs that wait: moved, held and released by their buttons, which keep the focus.
let pressed = ["", ""]; // [run, text of its button] that was used last

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]"), run = button?.closest("li")?.dataset.run;
  if (!button || !run) return;
  pressed = [run, button.textContent];
  trigger("select", { run, act: button.dataset.act, place: Number(button.dataset.place) });
});
watch("value", () => {
  const [run, text] = pressed;
  if (!run || (document.activeElement !== document.body && !element.contains(document.activeElement))) return;
  const row = [...element.querySelectorAll("li[data-run]")].find(({ dataset }) => dataset.run === run);
  const buttons = [...(row?.querySelectorAll("button:not(:disabled)") ?? [])];
  (buttons.find(({ textContent }) => textContent === text) ?? buttons[0])?.focus();
});
