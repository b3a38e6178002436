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
  const { box, part, sent, tick, window } = openSelection(t), removed = [];
  window.document.addEventListener("limner-remove", ({ detail }) => removed.push(detail));
  part(".every").click();
  tick("b");
  box("e").closest(".card").remove();
  await settle();
  assert.match(part(".count").textContent, /3/);
  part(".tag").value = "red";
  part("[data-action=add]").click();
  assert.deepEqual(sent, [["apply", { action: "add", names: ["a", "c", "d"], tag: "red", other: "" }]]);
  part("[data-action=remove]").click();
  assert.deepEqual([removed, sent.length], [[["a", "c", "d"]], 1]);
});

const finding = (kind, values = {}) => ({
  kind, title: kind, effect: "Effect.", remedy: "Remedy.", files: "", look: "", show: "yes", button: "Mend", pairs: [], remove: ["a.png"], ...values,
});
const overview = (values = {}) => ({ findings: [finding("blurred")], heading: "1 problem", serious: "yes", tags: [], sizes: [], ...values });

test("what the user opened or closed stays so when the value changes", (t) => {
  const { part, update } = component(openPage(t), "overview", { value: overview() });
  assert.equal(part(".doctor").open, true, "a serious problem is open");
  fire(part(".doctor summary"), "click");
  part(".doctor").open = false; // as browsers do after the click
  update(overview({ heading: "2 problems" }));
  assert.deepEqual([part(".doctor").open, part(".doctor summary").textContent], [false, "2 problems"]);
});

test("a finding shows its images and mends them, by its kind", async (t) => {
  const value = overview({ tags: [{ tag: "<b>red</b>", count: 2 }] }), window = openPage(t), filters = [];
  window.document.addEventListener("limner-filter", ({ detail }) => filters.push(detail));
  const { part, sent } = component(window, "overview", { value });
  assert.equal(part(".chip").textContent, "<b>red</b> 2");
  part(".show").click();
  part(".mend").click();
  part(".chip").click();
  await settle();
  assert.deepEqual(filters, [{ kind: "blurred" }, { tag: "<b>red</b>" }]);
  assert.deepEqual(sent, [["apply", { kind: "blurred", names: ["a.png"] }], ["select", { tag: "<b>red</b>" }]]);
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

test("bars are as long as buckets are full", (t) => {
  const sizes = [{ label: "512 x 512", count: 8 }, { label: "448 x 576", count: 2 }];
  const { element, part } = component(openPage(t), "overview", { value: overview({ sizes }) });
  const bars = [...element.querySelectorAll("meter")].map((bar) => ["max", "value"].map((name) => bar.getAttribute(name)));
  assert.deepEqual([bars, part(".sizes").hidden], [[["8", "8"], ["8", "2"]], false]);
});

/** A file in a folder that is dropped, by its name, or null if it cannot be read; or a folder, listed a few at a time. */
function entry(window, dropped, inside = "") {
  if (dropped === null || typeof dropped === "string") {
    const read = (give, fail) => (dropped ? give(new window.File(["x"], dropped)) : fail());
    return { isFile: true, isDirectory: false, fullPath: `${inside}/${dropped}`, file: read };
  }
  const [[name, files]] = Object.entries(dropped), parts = files.map((file) => [entry(window, file, `${inside}/${name}`)]);
  return { isFile: false, isDirectory: true, createReader: () => ({ readEntries: (give, fail) => (name === "closed" ? fail() : give(parts.shift() ?? [])) }) };
}

/** What a browser has of it: an image that is dragged from another page is no entry of the file system. */
function dropItem(window, dropped) {
  if (typeof dropped !== "string") return { kind: "file", webkitGetAsEntry: () => entry(window, dropped) };
  return { kind: "file", webkitGetAsEntry: () => null, getAsFile: () => new window.File(["x"], dropped) };
}

// What a browser does of XMLHttpRequest, at the test's word.
function openUploads(t, project = "mira") {
  const window = openPage(t, `<div id="captions"><div class="captions" data-project="${project}"></div></div>`);
  const requests = [], opened = [];
  window.XMLHttpRequest = class {
    constructor() {
      Object.assign(this, { upload: {}, responseText: "" });
      requests.push(this);
    }
    open(method, url) { Object.assign(this, { method, url }); }
    send(body) { this.body = body.getAll("files").map(({ name }) => name); }
    abort() { this.onabort(); }
    answer(value) {
      this.responseText = typeof value === "string" ? value : JSON.stringify(value);
      this.onload();
    }
  };
  window.limner = { open: (...page) => opened.push(page) };
  const shown = component(window, "uploads");
  Object.defineProperty(shown.element, "offsetParent", { value: window.document.body });
  const drop = (...names) => fire(window.document, "drop", {
    dataTransfer: { types: ["Files"], items: names.map((name) => dropItem(window, name)) },
  });
  const state = () => [shown.part(".running-upload").hidden, shown.part(".share").textContent];
  return { ...shown, window, requests, opened, drop, state };
}

test("dropped images go to the project of the page, in parts that the server takes", async (t) => {
  const { drop, requests, sent, state } = openUploads(t);
  drop(...Array.from({ length: 501 }, (_, number) => `${number}.png`));
  await settle();
  assert.deepEqual([requests[0].method, requests[0].url, requests[0].body.length], ["POST", "/images?project=mira", 500]);
  requests[0].upload.onprogress({ loaded: 1, total: 2 });
  assert.deepEqual(state(), [false, "49 %"]);
  drop("more.png");
  assert.equal(requests.length, 1, "one after the other");
  requests[0].answer({ project: "mira", report: "Added 500 images.", bad: false });
  await settle();
  requests[1].upload.onprogress({ loaded: 2, total: 2 });
  assert.deepEqual(state(), [false, "[[Taking in the images…]]"]);
  requests[1].answer({ project: "mira", report: "1 was refused.", bad: true });
  await settle();
  assert.deepEqual([requests[2].body, sent], [["more.png"], []], "what was dropped meanwhile comes next");
  requests[2].answer({ project: "mira", report: "Added 1 image.", bad: false });
  await settle();
  const report = "Added 500 images. 1 was refused. Added 1 image.";
  assert.deepEqual([state()[0], sent], [true, [["end", { report, bad: true }]]]);
});

test("a folder that is dropped is sent with all that is in it", async (t) => {
  const { drop, requests, sent, state } = openUploads(t);
  drop("single.png", { mine: ["a.png", null, { closed: [] }, { left: ["a.png", "a.txt"] }] });
  await settle();
  assert.deepEqual(requests[0].body, ["single.png", "mine/a.png", "mine/left/a.png", "mine/left/a.txt"]);
  requests[0].answer({ project: "mira", report: "Added 3 images.", bad: false });
  await settle();
  const report = "Added 3 images. [[Some files of the folder could not be read.]]";
  assert.deepEqual(sent[0], ["end", { report, bad: true }], "one that cannot be read costs none of the others");
  drop({ empty: [] });
  await settle();
  assert.deepEqual([requests.length, state()[0]], [1, true]);
  assert.deepEqual(sent[1], ["end", { report: "[[No files could be read in this folder.]]", bad: true }]);
});

test("images that go to a new project open it, with the report", async (t) => {
  const { drop, opened, requests, sent } = openUploads(t, "example-character");
  drop("a.png");
  drop("b.png");
  await settle();
  requests[0].answer({ project: "my-pictures", report: "Added 1 image.", bad: false });
  await settle();
  assert.equal(requests[1].url, "/images?project=my-pictures", "to the same one");
  requests[1].answer({ project: "my-pictures", report: "1 already there, skipped.", bad: false });
  await settle();
  assert.deepEqual([opened, sent], [[["my-pictures", "Added 1 image. 1 already there, skipped."]], []]);
});

test("an upload that is canceled or refused is over, and the page says why", async (t) => {
  const { drop, part, requests, sent, state } = openUploads(t);
  drop("a.png");
  drop("after it.png");
  await settle();
  part(".cancel-upload").click();
  await settle();
  assert.deepEqual([requests.length, state()[0], sent], [1, true, []]);
  drop("b.png");
  await settle();
  requests[1].answer("This request is too large.");
  await settle();
  assert.deepEqual(sent.map(([, { report, bad }]) => [report, bad]), [["This request is too large.", true]]);
});

test("an upload goes on after a restart of the server, and says so", async (t) => {
  const { drop, requests, sent, state, window } = openUploads(t);
  const cutOff = async (isThere) => {
    window.fetch = async () => (isThere ? {} : Promise.reject(new Error("offline")));
    requests.at(-1).onerror();
    await settle();
    const shown = state();
    t.mock.timers.tick(2000);
    await settle();
    return shown;
  };
  drop("a.png");
  await settle();
  const away = [false, "[[The server is not responding. The upload goes on when it does.]]"];
  for (let times = 0; times < 5; times += 1) assert.deepEqual(await cutOff(false), away);
  assert.deepEqual([requests.at(-1).body, sent], [["a.png"], []]);
  requests.at(-1).answer({ project: "mira", report: "Added 1 image.", bad: false });
  await settle();
  assert.deepEqual([state()[0], sent], [true, [["end", { report: "Added 1 image.", bad: false }]]]);
  drop("a file that is gone.png");
  await settle();
  for (let times = 0; times < 3; times += 1) await cutOff(true);
  assert.deepEqual([state()[0], sent[1]], [true, ["end", { report: "[[The images could not be sent. Choose them again.]]", bad: true }]]);
});

test("an upload that waits for the server can be canceled", async (t) => {
  const { drop, part, requests, sent, state, window } = openUploads(t);
  window.fetch = async () => Promise.reject(new Error("offline"));
  drop("a.png");
  await settle();
  requests[0].onerror();
  await settle();
  part(".cancel-upload").click();
  t.mock.timers.tick(2000);
  await settle();
  assert.deepEqual([requests.length, state()[0], sent], [1, true, []]);
});

test("the page is not left unasked while images are on their way", async (t) => {
  const { drop, window } = openUploads(t);
  assert.equal(fire(window, "beforeunload").defaultPrevented, false);
  drop("a.png");
  await settle();
  assert.equal(fire(window, "beforeunload").defaultPrevented, true);
});

const STORED = { status: 200, ok: true, json: async () => ({ refused: [] }) };

function openFields(t, answers) {
  const window = openPage(t, `<div id="captions"><div class="captions" data-project="mira"></div></div>
    <div id="trigger"><input></div><div id="class"><input></div>`);
  const requests = [];
  window.fetch = (url, { body, keepalive }) => {
    const { fields } = JSON.parse(body);
    requests.push([url, keepalive, ...fields.map(({ project, name, value, number }) => `${number} ${project} ${name} ${value}`)]);
    return answers.shift();
  };
  const typeIn = (id, text) => fire(Object.assign(window.document.querySelector(`#${id} input`), { value: text }), "input");
  return { window, requests, typeIn };
}

test("what is typed is sent under its project when typing pauses, and again until it is stored", async (t) => {
  const { requests, typeIn, window } = openFields(t, [Promise.reject(new Error("offline")), Promise.resolve(STORED)]);
  component(window, "fields");
  typeIn("trigger", "mir");
  typeIn("trigger", "miraxo");
  typeIn("class", "fox");
  t.mock.timers.tick(300);
  await settle();
  t.mock.timers.tick(3000);
  await settle();
  const expected = ["/typed", true, "2 mira trigger miraxo", "3 mira class fox"];
  assert.deepEqual(requests, [expected, expected]);
  t.mock.timers.tick(10_000);
  assert.equal(window.sessionStorage.getItem("limner-typed-fields"), "[]");
});

test("what is too large to outlive its page is sent while the page lives, as browsers would refuse it", async (t) => {
  const { requests, window } = openFields(t, [STORED, STORED]);
  component(window, "fields");
  for (const text of ["short", "é".repeat(40_000)]) await window.limnerFields.post({ fields: [], captions: [text] });
  assert.deepEqual(requests, [["/typed", true], ["/typed", false]]);
});

test("what was typed last is sent as the page is left, and by the next page if that failed", async (t) => {
  const { requests, typeIn, window } = openFields(t, [Promise.resolve({ status: 500 }), Promise.resolve(STORED)]);
  component(window, "fields");
  typeIn("trigger", "miraxo");
  fire(window, "pagehide");
  await settle();
  component(window, "fields");
  await settle();
  assert.deepEqual(requests.map(([, , field]) => field), ["1 mira trigger miraxo", "1 mira trigger miraxo"]);
});

test("a full disk is said once, and what was typed is sent until there is room", async (t) => {
  const full = { status: 507, ok: false, json: async () => ({ refused: ["The disk is full."] }) };
  const { requests, typeIn, window } = openFields(t, [full, full, STORED].map((answer) => Promise.resolve(answer))), asked = [];
  window.limner = { ask: async (sentence) => asked.push(sentence) };
  component(window, "fields");
  typeIn("trigger", "miraxo");
  for (const pause of [300, 3000, 3000]) {
    t.mock.timers.tick(pause);
    await settle();
  }
  assert.deepEqual([requests.length, asked], [3, ["The disk is full."]]);
  assert.equal(window.sessionStorage.getItem("limner-typed-fields"), "[]");
});

test("the acts of a tab have an order, also across its pages", async (t) => {
  const { window } = openFields(t, []);
  component(window, "fields");
  const moments = [window.limnerFields.moment(), window.limnerFields.moment()];
  t.mock.timers.tick(10);
  fire(window, "pagehide");
  component(window, "fields");
  moments.push(window.limnerFields.moment());
  const numbers = moments.map(({ number }) => number);
  assert.equal(new Set(moments.map(({ page }) => page)).size, 1);
  assert.deepEqual(numbers, [...numbers].sort((one, other) => one - other));
  assert.equal(new Set(numbers).size, 3);
  component(window, "fields"); // in a duplicate of the tab, which has a copy of its storage
  assert.notEqual(window.limnerFields.moment().page, moments[0].page);
});

test("what a server takes later is kept, and what it refuses is said", async (t) => {
  const refusing = { ...STORED, json: async () => ({ refused: ["The project 'mira' no longer exists."] }) };
  const answers = [{ status: 401 }, { status: 403 }, refusing, refusing].map((answer) => Promise.resolve(answer));
  const { requests, typeIn, window } = openFields(t, answers), asked = [];
  window.limner = { ask: async (sentence) => asked.push(sentence) };
  component(window, "fields");
  typeIn("trigger", "miraxo");
  for (const pause of [300, 3000, 3000]) {
    assert.match(window.sessionStorage.getItem("limner-typed-fields"), /miraxo/);
    t.mock.timers.tick(pause);
    await settle();
  }
  assert.equal(window.sessionStorage.getItem("limner-typed-fields"), "[]");
  typeIn("trigger", "x".repeat(70_000));
  t.mock.timers.tick(300);
  await settle();
  assert.deepEqual(requests.map(([, keepalive]) => keepalive), [true, true, true, false], "browsers keep small ones alive");
  assert.deepEqual(asked, Array(2).fill("The project 'mira' no longer exists."));
});
