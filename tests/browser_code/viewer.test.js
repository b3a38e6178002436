import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage, settle, slowly } from "./page.js";

const link = (name, data = "") => `<a href="/${name}" class="shape" data-caption="${name}" data-file="${name}"
  data-project="mira" data-size="200,100" data-crop="0,0" ${data}><img alt="${name}"></a>`;
const row = (letter) => `<tr>${[1, 2, 3].map((number) => `<td>${link(letter + number)}</td>`).join("")}</tr>`;
const TABLE = `<table><tbody>${row("a")}${row("b")}</tbody></table>`;

function open(t, html) {
  const window = openPage(t, html);
  // Of the geometry of the page: the overlay is as large as its image.
  window.SVGElement.prototype.getScreenCTM = () => ({ inverse: () => null });
  window.SVGElement.prototype.setPointerCapture = () => {};
  window.HTMLCanvasElement.prototype.setPointerCapture = () => {};
  window.DOMPoint = class {
    constructor(x, y) { Object.assign(this, { x, y }); }
    matrixTransform() { return this; }
  };
  component(window, "viewer", { html: "" });
  const { document } = window, dialog = document.querySelector("dialog.viewer");
  const find = (selector) => document.querySelector(selector);
  const shown = () => dialog.querySelector("figure img").alt;
  const key = (name) => fire(dialog, "keydown", { key: name });
  const show = (name) => find(`a[data-file="${name}"]`).click();
  return { window, dialog, find, shown, key, show, part: (selector) => dialog.querySelector(selector) };
}

test("the arrow keys go around in a row and through the rows of a table", (t) => {
  const { dialog, key, show, shown } = open(t, TABLE);
  show("a3");
  assert.deepEqual([dialog.open, shown()], [true, "a3"]);
  const seen = ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowUp"].map((name) => key(name) && shown());
  assert.deepEqual(seen, ["a1", "a3", "b3", "a3", "b3"]);
});

test("what training crops of an image is dark", (t) => {
  const { part, show } = open(t, `<div class="strip">${link("a").replace("0,0", "0.25,0")}${link("b")}</div>`);
  show("a");
  assert.equal(part(".over path").getAttribute("d"), "M0 0H200V100H0Z M25 0H175V100H25Z");
  show("b");
  assert.equal(part(".over path").getAttribute("d"), "");
});

test("an image of a pair can be removed, and the next pair is shown", (t) => {
  const { dialog, window, part } = open(t);
  const pair = (kept, copy) => {
    const made = window.document.createElement("a");
    made.innerHTML = `<img alt="${kept}">`;
    made.href = `/${kept}`;
    Object.assign(made.dataset, { file: kept, otherFile: copy, other: `/${copy}` });
    return made;
  };
  const removed = [];
  window.document.addEventListener("limner-remove", ({ detail }) => removed.push(...detail));
  fire(window.document, "limner-view", { detail: [pair("a", "b"), pair("b", "c"), pair("d", "e")] });
  part(".other .discard").click();
  assert.deepEqual([removed, part("figure img").alt, part(".other img").alt], [["b"], "d", "e"]);
  part("figure .discard").click();
  assert.deepEqual([removed, dialog.open], [["b", "d"], false]);
});

test("a click with Ctrl on a card selects it instead of showing it", (t) => {
  const { dialog, find } = open(t, `<div class="cards">${link("a")}</div>`);
  fire(find("a"), "click", { ctrlKey: true });
  assert.equal(dialog.open, false);
});

function openTools(t) {
  const calls = [], questions = [];
  const page = open(t, `<div class="cards">${link("a.png", 'data-edited="yes"')}${link("b.png")}</div>`);
  const server = { edit_image: slowly(calls), describe_crop: slowly(questions) };
  const { sent } = component(page.window, "image_tools", { server });
  page.show("a.png");
  const point = (kind, x, y) => fire(page.find(".viewer .over"), kind, { clientX: x, clientY: y, pointerId: 1 });
  const status = () => page.part(".image-tools .status").textContent;
  return { ...page, calls, questions, sent, point, status };
}

test("a crop is a rectangle within the image, however it is dragged", async (t) => {
  const { calls, part, point, sent } = openTools(t);
  part(".crop").click();
  assert.equal(part(".apply").disabled, true);
  point("pointerdown", 150, 80);
  point("pointermove", -20, 10);
  point("pointerup", -20, 10);
  point("pointermove", 100, 50);
  part(".apply").click();
  assert.deepEqual(calls[0].argument, { project: "mira", name: "a.png", action: "crop", box: [0, 10, 150, 80] });
  calls[0].answer({ ok: true });
  await settle();
  assert.deepEqual([sent, part(".cropping").hidden], [[["end"]], true]);
});

test("of a crop that is dragged on, the latest size is shown, and one question is asked at a time", async (t) => {
  const { part, point, questions, status } = openTools(t);
  part(".crop").click();
  point("pointerdown", 0, 0);
  for (const side of [10, 20, 30]) point("pointermove", side, side);
  assert.deepEqual(questions.map(({ argument }) => argument.box), [[0, 0, 10, 10]]);
  questions[0].answer({ ok: true, text: "10 x 10" });
  await settle();
  assert.deepEqual(questions.map(({ argument }) => argument.box.at(-1)), [10, 30]);
  questions[1].answer({ ok: true, text: "30 x 30" });
  await settle();
  assert.equal(status(), "30 x 30");
});

test("an edit that failed says why, and can be tried again", async (t) => {
  const { calls, part, sent, status } = openTools(t);
  part("[data-turns='1']").click();
  assert.equal(part("[data-turns='1']").disabled, true);
  calls[0].answer({ ok: false, error: "The disk is full." });
  await settle();
  assert.deepEqual([status(), sent.length, part("[data-turns='1']").disabled], ["The disk is full.", 0, false]);
  part("[data-turns='1']").click();
  assert.deepEqual(calls[1].argument, { project: "mira", name: "a.png", action: "rotate", turns: 1 });
});

test("tools are for images of a dataset, and the original only for edited ones", (t) => {
  const { part, show, find } = openTools(t);
  assert.equal(part(".original").hidden, false);
  show("b.png");
  assert.equal(part(".original").hidden, true);
  delete find("a[data-file='b.png']").dataset.project;
  show("b.png");
  assert.equal(part(".image-tools").hidden, true);
});

// A canvas that knows pixels and the width of its strokes, and writes its alpha as its file.
function canvases(window) {
  window.HTMLCanvasElement.prototype.getContext = function getContext() {
    this.pen ??= {
      pixels: new Uint8ClampedArray(4 * this.width * this.height), strokes: [], moveTo() {}, lineTo() {}, beginPath() {},
      getImageData() { return { data: this.pixels.slice() }; },
      putImageData({ data }) { this.pixels = data.slice(); },
      clearRect() { this.pixels = this.pixels.map(() => 0); },
      stroke() { this.strokes.push([this.lineWidth, this.globalCompositeOperation]); },
    };
    return this.pen;
  };
  window.HTMLCanvasElement.prototype.toDataURL = function toDataURL() {
    return `data:image/png;base64,${this.pen.pixels.slice(0, 8).join(" ")}`;
  };
}

function openMasks(t) {
  const calls = [];
  const page = open(t, `<div class="cards">${link("a.png").replace("200,100", "2,1")}${link("b.png")}</div>`);
  canvases(page.window);
  const { sent } = component(page.window, "masks", { server: { save_mask: slowly(calls) } });
  page.show("a.png");
  const canvas = page.part(".mask-layer");
  canvas.pen.pixels = new Uint8ClampedArray(8);
  page.part(".paint").click();
  return { ...page, calls, sent, canvas, status: () => page.part(".mask-tools .status").textContent };
}

test("the file of a mask is black where the image is left out, and white elsewhere", async (t) => {
  const { calls, canvas, part, sent } = openMasks(t);
  canvas.pen.pixels.set([190, 24, 93, 255, 0, 0, 0, 0]);
  part(".keep").click();
  assert.deepEqual(calls[0].argument, { project: "mira", name: "a.png", png: "0 0 0 255 255 255 255 255" });
  assert.deepEqual(sent, []);
  calls[0].answer({ ok: true });
  await settle();
  assert.deepEqual([sent, part(".painting-tools").hidden], [[["end"]], true]);
});

test("inverting a mask twice gives the same mask", (t) => {
  const { canvas, part } = openMasks(t);
  canvas.pen.pixels.set([190, 24, 93, 200, 190, 24, 93, 0]);
  part(".invert").click();
  assert.deepEqual([canvas.pen.pixels[3], canvas.pen.pixels[7]], [55, 255]);
  part(".invert").click();
  assert.deepEqual([canvas.pen.pixels[3], canvas.pen.pixels[7]], [200, 0]);
});

test("the brush has its share of the longer side, and erases if wanted", (t) => {
  const { canvas, part } = openMasks(t);
  canvas.width = 200;
  fire(canvas, "pointerdown", { clientX: 0, clientY: 0, pointerId: 1 });
  part(".erase").click();
  fire(canvas, "pointermove", { clientX: 1, clientY: 0 });
  fire(canvas, "pointerup");
  fire(canvas, "pointermove", { clientX: 2, clientY: 0 });
  assert.deepEqual(canvas.pen.strokes, [[16, "source-over"], [16, "destination-out"]]);
});

test("a mask that could not be saved stays to be painted, also after Escape", async (t) => {
  const { calls, dialog, part, sent, status } = openMasks(t);
  part(".keep").click();
  calls[0].fail(new Error("offline"));
  await settle();
  dialog.click();
  assert.deepEqual([fire(dialog, "cancel").defaultPrevented, dialog.open], [true, true]);
  assert.deepEqual([status(), sent.length, part(".painting-tools").hidden], ["[[the server is not responding.]]", 0, false]);
  part(".mask-tools .cancel").click();
  assert.equal(fire(dialog, "cancel").defaultPrevented, false);
});

test("on a phone, where the image stands above the form, a click on Generate leads to it", (t) => {
  const window = openPage(t, '<button id="make"></button>'), { element } = component(window, "sheet", { id: "result", html: "" });
  let shown = 0;
  element.scrollIntoView = () => { shown += 1; };
  for (const width of [1280, 390]) {
    window.happyDOM.setViewport({ width });
    window.document.querySelector("#make").click();
  }
  assert.equal(shown, 1);
});
