// Masks, drawn over the image in the viewer. The canvas is opaque where the image is left out; the file is white where it
// is learned.
const MAX_SIDE = 2048;
const COLOR = [190, 24, 93];
const canvas = document.createElement("canvas");
canvas.className = "mask-layer";
const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
const bar = document.createElement("footer");
bar.className = "image-tools mask-tools";
bar.innerHTML = `<button type="button" class="act paint">[[Mask]]</button><span class="acts painting-tools" hidden>
  <label>[[Brush]] <input type="range" class="brush" min="1" max="30" value="8"></label>
  <button type="button" class="act erase" aria-pressed="false">[[Erase]]</button>
  <button type="button" class="act invert">[[Invert]]</button><button type="button" class="act clear">[[Clear]]</button>
  <button type="button" class="act alpha">[[From transparency]]</button>
  <button type="button" class="act keep">[[Save the mask]]</button><button type="button" class="act cancel">[[Cancel]]</button></span>
  <span class="status" role="status" aria-live="polite"></span>`;
const part = /** @type {Find} */ (bar.querySelector.bind(bar));
const viewer = () => document.querySelector("dialog.viewer");
let shown = document.createElement("a"); // the link of the image in the viewer
let last = /** @type {number[] | null} */ (null); // the point that is painted from

function say(/** @type {string} */ text, bad = false) {
  part(".status").textContent = text;
  part(".status").classList.toggle("bad", bad);
}

function paint(/** @type {boolean} */ on) {
  viewer().classList.toggle("painting", on);
  viewer().classList.remove("actual");
  part(".paint").hidden = on;
  part(".painting-tools").hidden = !on;
  part(".erase").setAttribute("aria-pressed", "false");
  say(on ? "[[What you paint is left out of training.]]" : "");
}

// Change the alpha of each pixel of the canvas.
function eachAlpha(/** @type {(pixel: Uint8ClampedArray) => number[]} */ change) {
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(change(pixels.data.subarray(at, at + 4)), at);
  return pixels;
}

async function load(/** @type {HTMLAnchorElement} */ link) {
  const [width, height] = link.dataset.size.split(",").map(Number);
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  if (!link.dataset.mask) return;
  const image = new Image();
  image.src = link.dataset.mask;
  try {
    await image.decode();
  } catch {
    return say("[[The mask cannot be shown.]]", true);
  }
  if (link !== shown) return;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.putImageData(eachAlpha(([gray]) => [...COLOR, 255 - gray]), 0, 0);
}

function drawing() {
  const file = document.createElement("canvas");
  [file.width, file.height] = [canvas.width, canvas.height];
  file.getContext("2d")?.putImageData(eachAlpha(([, , , alpha]) => [255 - alpha, 255 - alpha, 255 - alpha, 255]), 0, 0);
  return file.toDataURL("image/png").split(",")[1];
}

async function save(/** @type {{ png?: string, transparency?: boolean }} */ values) {
  say("[[Saving…]]");
  const image = { project: shown.dataset.project, name: shown.dataset.file };
  const answer = await server.save_mask({ ...image, ...values }).catch(() => null);
  if (!answer?.ok) return say(answer?.error ?? "[[the server is not responding.]]", true);
  paint(false);
  trigger("end");
}

function pointAt(/** @type {PointerEvent} */ event) {
  const over = viewer().querySelector(".over"), width = Number(shown.dataset.size.split(",")[0]);
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(over.getScreenCTM()?.inverse());
  return [point.x, point.y].map((value) => value * canvas.width / width);
}

function stroke(/** @type {number[]} */ from, /** @type {number[]} */ to) {
  pen.globalCompositeOperation = part(".erase").getAttribute("aria-pressed") === "true" ? "destination-out" : "source-over";
  pen.strokeStyle = `rgb(${COLOR})`;
  pen.lineWidth = Math.max(canvas.width, canvas.height) * Number(part(".brush").value) / 100;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(from[0], from[1]);
  pen.lineTo(to[0], to[1]);
  pen.stroke();
  pen.globalCompositeOperation = "source-over";
  last = to;
}

document.addEventListener("limner-shown", ({ target, detail }) => {
  if (bar.parentElement !== target) target.append(bar);
  target.querySelector(".sheet").append(canvas);
  shown = detail;
  bar.hidden = canvas.hidden = !shown.dataset.project;
  paint(false);
  if (!bar.hidden) load(shown);
});
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = pointAt(event);
  stroke(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (last) stroke(last, pointAt(event));
});
canvas.addEventListener("pointerup", () => { last = null; });
bar.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".paint")) paint(true);
  else if (button?.matches(".erase")) button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  else if (button?.matches(".invert")) pen.putImageData(eachAlpha(([, , , alpha]) => [...COLOR, 255 - alpha]), 0, 0);
  else if (button?.matches(".clear")) pen.clearRect(0, 0, canvas.width, canvas.height);
  else if (button?.matches(".alpha")) save({ transparency: true });
  else if (button?.matches(".keep")) save({ png: drawing() });
  else if (button?.matches(".cancel")) document.dispatchEvent(new CustomEvent("limner-show-again"));
});
