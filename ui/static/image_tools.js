// Tools of the viewer for the images of a dataset: rotate, crop, restore the original. The viewer tells which image it
// shows; what is edited is drawn again with the cards, and the viewer follows.
let shown = document.createElement("a"); // the link of the image in the viewer
let box = /** @type {number[] | null} */ (null); // of the crop that is being chosen: left, top, right, bottom in pixels of the image
let start = /** @type {number[] | null} */ (null); // where the pointer went down
let asking = false; // the server is describing a crop

const bar = document.createElement("footer");
bar.className = "image-tools";
bar.innerHTML = `<span class="acts edit"><button type="button" class="act" data-turns="3">[[Rotate left]]</button>
  <button type="button" class="act" data-turns="1">[[Rotate right]]</button>
  <button type="button" class="act crop">[[Crop]]</button>
  <button type="button" class="act original">[[Restore the original]]</button></span>
  <span class="acts cropping" hidden><span>[[Drag a rectangle over the image.]]</span>
  <button type="button" class="act apply">[[Crop to it]]</button><button type="button" class="act cancel">[[Cancel]]</button></span>
  <span class="status" role="status" aria-live="polite"></span>`;
const part = /** @type {Find} */ (bar.querySelector.bind(bar));
const viewer = () => document.querySelector("dialog.viewer");
const over = () => viewer().querySelector(".over");
const size = () => shown.dataset.size.split(",").map(Number);
const image = () => ({ project: shown.dataset.project, name: shown.dataset.file });

function say(/** @type {string} */ text, bad = false) {
  part(".status").textContent = text;
  part(".status").classList.toggle("bad", bad);
}

function crop(/** @type {boolean} */ on) {
  box = null;
  part(".edit").hidden = on;
  part(".cropping").hidden = !on;
  part(".apply").disabled = true;
  viewer().classList.toggle("cropping", on);
  if (on) viewer().classList.remove("actual");
}

async function edit(/** @type {string} */ action, values = {}) {
  for (const button of bar.querySelectorAll("button")) button.disabled = true;
  say("[[Saving…]]");
  const answer = await server.edit_image({ ...image(), action, ...values }).catch(() => null);
  for (const button of bar.querySelectorAll("button")) button.disabled = false;
  crop(false);
  say(answer?.ok ? "" : answer?.error ?? "[[the server is not responding.]]", !answer?.ok);
  if (answer?.ok) trigger("end");
}

// The point of the image under the pointer, within it.
function pointAt(/** @type {PointerEvent} */ event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(over().getScreenCTM()?.inverse());
  return [point.x, point.y].map((value, side) => Math.round(Math.min(Math.max(value, 0), size()[side])));
}

function choose(/** @type {PointerEvent} */ event, /** @type {number[]} */ start) {
  const [x, y] = pointAt(event), [width, height] = size();
  box = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
  const [left, top, right, bottom] = box;
  viewer().querySelector(".over path").setAttribute("d", `M0 0H${width}V${height}H0Z M${left} ${top}H${right}V${bottom}H${left}Z`);
  part(".apply").disabled = right <= left || bottom <= top;
  describe();
}

async function describe() {
  if (asking) return;
  asking = true;
  for (let asked = null; box && asked !== String(box);) {
    asked = String(box);
    const answer = await server.describe_crop({ ...image(), box }).catch(() => null);
    if (box && answer?.ok) say(answer.text);
  }
  asking = false;
}

document.addEventListener("limner-shown", ({ target, detail }) => {
  if (bar.parentElement !== target) target.append(bar);
  shown = detail;
  bar.hidden = !shown.dataset.project;
  crop(false);
  say("");
  part(".original").hidden = !shown.dataset.edited;
});
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest?.(".viewer.cropping .over")) return;
  over().setPointerCapture(event.pointerId);
  start = pointAt(event);
});
document.addEventListener("pointermove", (event) => {
  if (start) choose(event, start);
});
document.addEventListener("pointerup", () => { start = null; });
bar.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.turns) edit("rotate", { turns: Number(button.dataset.turns) });
  else if (button?.matches(".crop")) crop(true);
  else if (button?.matches(".apply")) edit("crop", { box });
  else if (button?.matches(".original")) edit("restore");
  else if (button?.matches(".cancel")) document.dispatchEvent(new CustomEvent("limner-show-again"));
});
