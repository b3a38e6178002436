// The runs that wait: dragged to another place, or moved, held and released by their buttons, which keep the focus.
let dragged = /** @type {HTMLElement | null} */ (null); // the row that is being dragged
let before = /** @type {HTMLElement[]} */ ([]); // the rows in their order before
let pressed = ["", ""]; // [run, text of its button] that was used last

const rows = () => [...element.querySelectorAll("li[data-run]")];

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]"), run = button?.closest("li")?.dataset.run;
  if (!button || !run) return;
  pressed = [run, button.textContent];
  trigger("select", { run, act: button.dataset.act, place: Number(button.dataset.place) });
});
element.addEventListener("dragstart", (event) => {
  dragged = event.target.closest("li[data-run]");
  if (!dragged || !event.dataTransfer) return;
  before = rows();
  event.dataTransfer.effectAllowed = "move";
  event.dataTransfer.setData("text/plain", dragged.dataset.run);
  dragged.classList.add("dragged");
});
element.addEventListener("dragover", (event) => {
  const row = event.target.closest("li[data-run]");
  if (!dragged) return;
  event.preventDefault();
  if (!row || row === dragged) return;
  const { top, height } = row.getBoundingClientRect();
  row[event.clientY > top + height / 2 ? "after" : "before"](dragged);
});
element.addEventListener("drop", (event) => { if (dragged) event.preventDefault(); });
element.addEventListener("dragend", (event) => {
  if (!dragged) return;
  dragged.classList.remove("dragged");
  const place = rows().indexOf(dragged);
  const moved = place !== before.indexOf(dragged);
  if (event.dataTransfer?.dropEffect === "none") before[0].parentElement?.append(...before); // Escape, or let go elsewhere
  else if (moved) trigger("select", { run: dragged.dataset.run, act: "move", place: place + 1 });
  dragged = null;
});
watch("value", () => {
  const [run, text] = pressed;
  if (!run || (document.activeElement !== document.body && !element.contains(document.activeElement))) return;
  const row = rows().find(({ dataset }) => dataset.run === run);
  const buttons = [...(row?.querySelectorAll("button:not(:disabled)") ?? [])];
  (buttons.find(({ textContent }) => textContent === text) ?? buttons[0])?.focus();
});
