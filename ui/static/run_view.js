// The view of a run is one value. One that is about another run than the chosen one, or older than what is drawn, came late and
// is dropped. One that chooses a run is drawn once, also if a newer one about the run before it came first. Buttons act on the
// run that they were drawn for.
const root = element, part = /** @type {Find} */ (root.querySelector.bind(root));
const view = /** @type {View<RunView>} */ (props);
const PRESSED = 3000; // milliseconds in which a second click is the same one
const inside = new WeakMap(); // the HTML in each part
let drawn = /** @type {RunView | null} */ (null), wanted = "", latestChoice = 0;
let isPressed = false; // a button, which would get no click if it were replaced now
window.limnerRun = {
  choose(run) { wanted = run; },
  seen(run) {
    wanted = run ?? "";
    return drawn ? { stamp: drawn.stamp, runs: drawn.runs } : {};
  },
};

function isLate(/** @type {RunView} */ { revision, asked }) {
  if (!asked) return revision <= latestChoice;
  return revision <= (drawn?.revision ?? 0) || (wanted !== "" && asked !== wanted);
}

function show() {
  const value = view.value?.revision ? view.value : null;
  if (isPressed || !value || isLate(value)) return;
  for (const [id, html] of Object.entries(value.parts)) {
    const area = document.querySelector(/** @type {"#status"} */ (`#${id}`));
    // eslint-disable-next-line no-restricted-syntax -- HTML of ui/templates, in which values are escaped
    if (area && inside.get(area) !== html) area.innerHTML = html;
    if (area) inside.set(area, html);
  }
  if (value.parts["log-text"] !== drawn?.parts["log-text"]) part("#log-text").scrollTop = part("#log-text").scrollHeight;
  if (drawn?.parts.dock && !value.parts.dock) trigger("stop");
  if (value.run !== wanted && new URL(location.href).searchParams.has("run")) window.limner?.show({ run: value.run });
  [drawn, wanted] = [value, value.run];
  if (!value.asked) latestChoice = value.revision;
}

document.addEventListener("pointerdown", ({ target }) => { isPressed = Boolean(target.closest("button[data-event]")); });
for (const end of /** @type {const} */ (["pointerup", "pointercancel"])) {
  document.addEventListener(end, () => { setTimeout(() => { isPressed = false; show(); }); });
}
document.addEventListener("click", ({ target }) => {
  const button = target.closest("button[data-event]");
  if (!button) return;
  button.disabled = true;
  setTimeout(() => { button.disabled = false; }, PRESSED);
  if (button.dataset.act === "show") document.querySelector("#tab-train-button").click();
  trigger(/** @type {"edit"} */ (button.dataset.event), { run: button.dataset.run, act: button.dataset.act });
});
watch("value", show);
show();
