import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage, settle } from "./page.js";

const CARDS = `<div id="captions"><div class="cards">${["a", "b", "c", "d", "e"].map((name) =>
  `<div class="card" data-name="${name}"><a class="shape"><img></a><input type="checkbox" class="pick"></div>`).join("")}</div></div>`;

function openSelection(t) {
  const window = openPage(t, CARDS);
  const shown = component(window, "selection");
  const cards = () => [...window.document.querySelectorAll(".card")];
  const box = (name) => cards().find(({ dataset }) => dataset.name === name).querySelector(".pick");
  const tick = (name, shiftKey = false) => {
    box(name).checked = !box(name).checked;
    fire(box(name), "click", { shiftKey });
  };
  const picked = () => cards().filter((card) => card.querySelector(".pick").checked).map(({ dataset }) => dataset.name).join("");
  return { ...shown, window, box, tick, picked };
}

test("a click with shift selects everything from the last one to this, in either direction", (t) => {
  const { picked, tick } = openSelection(t);
  tick("d");
  tick("b", true);
  assert.equal(picked(), "bcd");
  tick("d", true);
  assert.equal(picked(), "", "the range takes what was clicked last");
});

test("a click on an image with Ctrl selects it, and another one lets it go", (t) => {
  const { box, part, picked } = openSelection(t);
  const image = box("c").closest(".card").querySelector("img");
  fire(image, "click", { ctrlKey: true });
  assert.deepEqual([picked(), part(".selection").hidden, part(".count").textContent], ["c", false, "[[1 selected]]"]);
  fire(image, "click", { ctrlKey: true });
  assert.deepEqual([picked(), part(".selection").hidden], ["", true]);
});

test("an action is applied to the cards that are selected and still there", async (t) => {
  const { box, part, sent, tick } = openSelection(t);
  part(".every").click();
  tick("b");
  box("e").closest(".card").remove();
  await settle();
  assert.match(part(".count").textContent, /3/);
  part(".tag").value = "red";
  part("[data-action=add]").click();
  assert.deepEqual(sent, [["apply", { action: "add", names: ["a", "c", "d"], tag: "red", other: "" }]]);
});

const finding = (kind, values = {}) => ({
  kind, title: kind, effect: "Effect.", remedy: "Remedy.", files: "", look: "", show: "yes", button: "Mend", pairs: [], ...values,
});
const overview = (values = {}) => ({ findings: [finding("blurred")], heading: "1 problem", serious: "yes", tags: [], sizes: null, ...values });

test("what the user opened or closed stays so when the value changes", (t) => {
  const { part, update } = component(openPage(t), "overview", { value: overview() });
  assert.equal(part(".doctor").open, true, "a serious problem is open");
  fire(part(".doctor summary"), "click");
  part(".doctor").open = false; // as browsers do after the click
  update(overview({ heading: "2 problems" }));
  assert.deepEqual([part(".doctor").open, part(".doctor summary").textContent], [false, "2 problems"]);
});

test("a finding shows its images and mends them, by its kind", (t) => {
  const value = overview({ tags: [{ tag: "<b>red</b>", count: 2 }] });
  const { part, sent } = component(openPage(t), "overview", { value });
  assert.equal(part(".chip").textContent, "<b>red</b> 2");
  part(".show").click();
  part(".mend").click();
  part(".chip").click();
  assert.deepEqual(sent, [["select", { kind: "blurred" }], ["apply", { kind: "blurred" }], ["select", { tag: "<b>red</b>" }]]);
});

test("pairs of images that are nearly the same are viewed side by side", (t) => {
  const window = openPage(t), viewed = [];
  const side = (name) => ({ name, url: `/${name}`, text: `${name}, 8 x 8` });
  const pairs = [[side("a"), side("b")], [side("c"), side("d")]];
  window.document.addEventListener("limner-view", ({ detail }) => {
    viewed.push(...detail.map(({ dataset }) => [dataset.file, dataset.otherFile]));
  });
  const value = overview({ findings: [finding("dark"), finding("copy", { pairs })] });
  const { element } = component(window, "overview", { value });
  const buttons = [...element.querySelectorAll("li .pairs")];
  assert.deepEqual(buttons.map(({ hidden }) => hidden), [true, false]);
  buttons[1].click();
  assert.deepEqual(viewed, [["a", "b"], ["c", "d"]]);
});

test("bars are as long as buckets are full, and larger images lie further out", (t) => {
  const sizes = { title: "Buckets", resolution: 512, bars: [{ label: "512 x 512", count: 8 }, { label: "448 x 576", count: 2 }],
    sizes: [{ width: 256, height: 512, count: 1 }, { width: 1024, height: 2048, count: 4 }] };
  const { element, part } = component(openPage(t), "overview", { value: overview({ sizes }) });
  const numbers = (selector, name) => [...element.querySelectorAll(selector)].map((item) => Number(item.getAttribute(name)));
  const [full, quarter] = numbers("rect", "width");
  const [near, far] = numbers("circle", "cx"), [below, above] = numbers("circle", "cy");
  assert.equal(full, 4 * quarter);
  assert.ok(near < far && below > above && near >= 26 && far <= 294 && above >= 26 && below <= 144);
  assert.equal(part(".sizes").hidden, false);
});

// What a browser does of XMLHttpRequest, at the test's word.
function openUploads(t) {
  const window = openPage(t), requests = [], passed = [];
  window.XMLHttpRequest = class {
    constructor() {
      Object.assign(this, { upload: {}, headers: {}, status: 200, statusText: "OK", responseText: "" });
      requests.push(this);
    }
    open(method, url) { Object.assign(this, { method, url: String(url) }); }
    setRequestHeader(name, value) { this.headers[name] = value; }
    send(body) { this.body = body; }
    abort() { this.end("abort"); }
    end(how) {
      this[`on${how}`]();
      this.onloadend();
    }
  };
  window.fetch = (...request) => passed.push(request) && "answer";
  const { part } = component(window, "uploads");
  const upload = (body = "files") => window.fetch("/gradio_api/upload?upload_id=1", { method: "POST", body, headers: { "x-token": "t" } });
  const state = () => [part(".running-upload").hidden, part("progress").value, part(".share").textContent];
  return { window, requests, passed, part, upload, state };
}

test("requests that are not uploads pass through fetch as they were", (t) => {
  const { passed, requests, window } = openUploads(t);
  const options = { method: "POST", body: "{}" };
  assert.equal(window.fetch("/gradio_api/queue/join", options), "answer");
  assert.equal(window.fetch(new window.Request("http://127.0.0.1:7860/info")), "answer");
  assert.deepEqual([passed[0], passed.length, requests.length], [["/gradio_api/queue/join", options], 2, 0]);
  assert.equal(passed[0][1], options);
});

test("an upload is answered as fetch would", async (t) => {
  const { requests, upload, window } = openUploads(t);
  const answer = upload("the files");
  const [request] = requests;
  assert.deepEqual([request.method, request.url, request.body, request.headers],
    ["POST", "http://127.0.0.1:7860/gradio_api/upload?upload_id=1", "the files", { "x-token": "t" }]);
  Object.assign(request, { status: 413, responseText: '{"detail": "too large"}' });
  request.end("load");
  const response = await answer;
  assert.ok(response instanceof window.Response);
  assert.deepEqual([response.ok, response.status, await response.json()], [false, 413, { detail: "too large" }]);
});

test("the progress is that of all uploads together, until the last one ends", async (t) => {
  const { requests, state, upload } = openUploads(t);
  const answers = [upload(), upload()];
  requests[0].upload.onprogress({ loaded: 100, total: 100 });
  requests[1].upload.onprogress({ loaded: 50, total: 300 });
  assert.deepEqual(state(), [false, 0.375, "37 %"]);
  requests[0].end("load");
  assert.deepEqual(state().slice(0, 1), [false]);
  requests[1].end("load");
  assert.equal(state()[0], true);
  await Promise.all(answers);
});

test("a failed upload is a failed fetch, and a canceled one an aborted one", async (t) => {
  const { part, requests, state, upload } = openUploads(t);
  const failed = assert.rejects(upload(), { name: "TypeError", message: "Failed to fetch" });
  requests[0].end("error");
  await failed;
  const canceled = [upload(), upload()].map((answer) => assert.rejects(answer, { name: "AbortError" }));
  part(".cancel-upload").click();
  await Promise.all(canceled);
  assert.equal(state()[0], true);
});
