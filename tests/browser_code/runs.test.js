import assert from "node:assert/strict";
import { test } from "node:test";
import { component, expression, fire, openPage, settle } from "./page.js";

const queue = (...runs) => `<ul>${runs.map((run, place) => `<li data-run="${run}"><button data-act="move" data-place="${place}">Up</button>
  <button data-act="hold">Hold</button></li>`).join("")}</ul>`;

test("the button that was pressed keeps the focus when the queue is drawn again", (t) => {
  const window = openPage(t), { part, sent, update } = component(window, "queue", { html: queue("a", "b", "c") });
  const row = (run) => part(`[data-run=${run}]`);
  row("c").querySelector("button").click();
  assert.deepEqual(sent, [["select", { run: "c", act: "move", place: 2 }]]);
  update("", queue("a", "c", "b"));
  assert.equal(window.document.activeElement, row("c").querySelector("button"));
  window.document.body.insertAdjacentHTML("beforeend", "<input>");
  window.document.querySelector("input").focus();
  update("", queue("c", "a", "b"));
  assert.equal(window.document.activeElement.tagName, "INPUT", "the focus is not taken from elsewhere");
});

test("a view of another run, or an older one, is not drawn, and a button acts on the run that it was drawn for", (t) => {
  const window = openPage(t, '<div id="dock"></div><b id="tab-train-button"></b>'), button = (run) => `<button data-act="stop" data-event="edit" data-run="${run}"></button>`;
  const { part, sent, update } = component(window, "run_view");
  const answer = (revision, run, asked = run) => update({ revision, asked, run, stamp: `${revision}`, runs: [run],
    parts: { status: `${run} ${revision}`, "run-buttons": button(run) } });
  const shown = () => part("#status").textContent;
  answer(1, "a", "");
  assert.deepEqual([shown(), window.limnerRun.seen()], ["a 1", { stamp: "1", runs: ["a"] }]);
  answer(3, "a");
  answer(2, "a");
  assert.equal(shown(), "a 3");
  part("[data-act=stop]").click();
  part("[data-act=stop]").click();
  window.limnerRun.choose("b");
  answer(4, "a");
  assert.equal(shown(), "a 3");
  answer(5, "b");
  assert.equal(shown(), "b 5");
  answer(6, "c", "");
  assert.equal(shown(), "c 6", "a run that was started is shown whatever was chosen before");
  let isOpened = false;
  window.document.querySelector("#tab-train-button").addEventListener("click", () => { isOpened = true; });
  update({ revision: 7, asked: "c", run: "c", stamp: "7", runs: ["c"], parts: { dock: '<button data-act="show" data-event="expand" data-run="a">' } });
  window.document.querySelector("#dock button").click();
  assert.equal(isOpened, true, "the run that trains leads to its view from any tab");
  assert.deepEqual(sent, [["edit", { run: "a", act: "stop" }], ["expand", { run: "a", act: "show" }]]);
  update({ revision: 8, asked: "c", run: "c", stamp: "8", runs: ["c"], parts: { dock: "" } });
  assert.deepEqual(sent.slice(2), [["stop"]], "the plan is made anew when the last run has ended");
});

test("a run that was started is shown though an answer about the one before was made after its own and came first", (t) => {
  const window = openPage(t), { part, update } = component(window, "run_view");
  const answer = (revision, run, asked = run) => update({ revision, asked, run, stamp: "", runs: [], parts: { status: `${run} ${revision}` } });
  const shown = () => part("#status").textContent;
  answer(1, "a", "");
  answer(3, "a");
  answer(2, "b", "");
  assert.equal(shown(), "b 2");
  answer(4, "a");
  assert.equal(shown(), "b 2");
  answer(5, "b");
  window.limnerRun.choose("c");
  answer(2, "b", "");
  answer(6, "b");
  assert.equal(shown(), "b 5", "it is shown once, whatever is chosen later");
  window.limnerRun.seen("b");
  answer(7, "b");
  assert.equal(shown(), "b 7", "the list of runs says which one is chosen");
});

test("runs are renamed and files deleted only if that is confirmed, runs are deleted at once", async (t) => {
  const window = openPage(t), questions = [];
  const { part, sent } = component(window, "runs", { html: `<button class="rename" data-run="r" data-name="old">
    </button><button class="bin" data-file="f" data-label="$& file"></button><button class="again" data-run="r"></button>
    <p class="run-row"><button class="bin" data-run="r"></button><button class="copy" data-text="miraxo"></button></p>` });
  let answer = "";
  window.limner = { ask: async (text) => questions.push(text) && answer };
  for (const press of [".rename", ".bin"]) part(press).click();
  await settle();
  answer = "old";
  part(".rename").click();
  await settle();
  assert.deepEqual(sent, []);
  assert.match(questions[1], /Move \$& file to the bin/);
  answer = "new";
  for (const press of [".rename", ".bin", ".again"]) {
    part(press).click();
    await settle();
  }
  assert.deepEqual(sent, [["select", { run: "r", name: "new" }], ["delete", { run: "", file: "f" }], ["apply", { run: "r" }]]);
  part(".run-row .bin").click();
  assert.ok(part(".run-row").classList.contains("leaving"));
  fire(part(".run-row"), "animationend");
  assert.ok(!part(".run-row").classList.contains("leaving"), "it was not deleted, or is there again");
  assert.deepEqual(sent.at(-1), ["delete", { run: "r", file: "" }]);
  part(".copy").click();
  await settle();
  assert.deepEqual([await window.navigator.clipboard.readText(), part(".copy").textContent], ["miraxo", "[[Copied]]"]);
});

test("the window's title has the progress, and the end of a run is announced once to those who want it", async (t) => {
  const window = openPage(t, '<div id="status"></div>'), announced = [];
  window.document.title = "Limner";
  window.AudioContext = class {
    currentTime = 0;
    createOscillator() { return { frequency: {}, connect: (next) => next, start() {}, stop() {} }; }
    createGain() { return { gain: { setValueAtTime() {}, exponentialRampToValueAtTime() {} }, connect: (next) => next }; }
  };
  window.Notification = class {
    static permission = "granted";
    static requestPermission() {}
    constructor(title, { body }) { announced.push(body); }
  };
  const { part } = component(window, "notify", { html: '<input type="checkbox">' });
  const become = async (status, share = 0) => {
    window.document.querySelector("#status").innerHTML =
      `<div><div data-status="${status}"><b class="pill">${status}</b></div><i role="progressbar" ${share === null ? "" : `aria-valuenow="${share}"`}></i></div>`;
    await settle();
    return window.document.title;
  };
  assert.equal(await become("waiting", null), "waiting · Limner", "nobody knows how far it is");
  assert.equal(await become("running", 40), "40 % · Limner");
  assert.equal(await become("finished"), "Limner");
  assert.deepEqual(announced, []);
  fire(Object.assign(part("input"), { checked: true }), "change");
  for (const status of ["running", "finished", "finished", "waiting", "failed"]) await become(status);
  assert.deepEqual(announced, ["finished"]);
});

test("a run that was started is scrolled to if it is out of sight", (t) => {
  const window = openPage(t, '<div id="status"></div><b id="tab-train-button"></b>'), status = window.document.querySelector("#status");
  window.requestAnimationFrame = (then) => then();
  const isScrolled = (top, bottom) => {
    let isCalled = false;
    Object.assign(status, { getBoundingClientRect: () => ({ top, bottom }), scrollIntoView: () => { isCalled = true; } });
    expression(window, "show_run.js")();
    return isCalled;
  };
  assert.deepEqual([isScrolled(100, 300), isScrolled(-50, 150), isScrolled(500, 700)], [false, true, true]);
});

test("a project is deleted only after a yes", async (t) => {
  const window = openPage(t), remove = expression(window, "delete_project.js");
  window.limner = { ask: async () => "" };
  assert.deepEqual(await remove("mira"), [null]);
  window.limner = { ask: async () => "yes" };
  assert.deepEqual(await remove("mira"), ["mira"]);
});

test("a table of images is saved as one image with its labels, long ones in lines", (t) => {
  const window = openPage(t), drawn = [];
  const pen = { measureText: (text) => ({ width: 10 * text.length }), fillRect() {}, drawImage: (image, ...box) => drawn.push(box),
    fillText: (text) => drawn.push(text) };
  window.HTMLCanvasElement.prototype.getContext = () => pen;
  let sheet;
  window.HTMLCanvasElement.prototype.toBlob = function toBlob() { sheet = this; };
  const image = "<img>", row = (head) => `<tr><th>${head}</th><td>${image}</td><td>${image}</td></tr>`;
  const { element, part } = component(window, "sheet", { html: `<button class="save-sheet"></button>
    <div class="uncover"><input type="range"></div><table><thead><tr><th></th><th>0.5</th><th>1</th></tr></thead>
    <tbody>${row("a cat in a garden")}</tbody></table>` });
  const size = { naturalWidth: { value: 256 }, naturalHeight: { value: 256 } };
  for (const item of element.querySelectorAll("img")) Object.defineProperties(item, size);
  part(".save-sheet").click();
  assert.deepEqual(drawn, ["0.5", "1", "a cat in a", "garden", [150, 44, 512, 512], [674, 44, 512, 512]]);
  assert.deepEqual([sheet.width, sheet.height], [150 + 2 * 524 + 12, 44 + 524 + 12]);
  fire(Object.assign(part("input"), { value: "30" }), "input");
  assert.equal(part(".uncover").style.getPropertyValue("--cut"), "30%");
});

test("an earlier step is shown large while newer previews arrive, and the newest again at the end of the slider", async (t) => {
  const image = (prompt, step) => `<a href="${prompt}${step}"><img src="${prompt}${step}" alt="Step ${step}: ${prompt}"></a>`;
  const row = (prompt, steps) => `<tr><th></th>${steps.map((step) => `<td>${prompt === "b" && step === 20 ? "" : image(prompt, step)}</td>`).join("")}</tr>`;
  const heads = (steps) => steps.map((step) => `<th data-step="${step}">${step}</th>`).join("");
  const window = openPage(t, '<div id="status"><i data-run="r"></i></div><div id="newest"></div><div id="previews"></div>'), { document } = window;
  const html = '<button class="play" aria-pressed="false"></button><input type="range" min="0">';
  const { element, part } = component(window, "film", { html });
  const draw = async (steps) => {
    document.querySelector("#newest").innerHTML = ["a", "b"].map((prompt) => `<figure>${image(prompt, steps.at(-1))}<figcaption></figcaption></figure>`).join("");
    document.querySelector("#previews").innerHTML = `<table><thead><tr><th></th>${heads(steps)}</tr></thead><tbody>${row("a", steps)}${row("b", steps)}</tbody></table>`;
    await settle();
  };
  const large = () => [...document.querySelectorAll("#newest img")].map(({ src }) => src.slice(-3)).join(" ");
  const slide = (place) => {
    part("input").value = place;
    fire(part("input"), "input");
  };
  await draw([10]);
  assert.equal(element.hidden, true, "of one step there is nothing to choose");
  await draw([10, 20, 30]);
  assert.deepEqual([large(), element.hidden], ["a30 b30", false]);
  slide("1");
  assert.equal(large(), "a20 b10", "the latest image before the step where a prompt has none");
  assert.equal(document.querySelector("figcaption").textContent, "Step 20: a");
  await draw([10, 20, 30, 40]);
  assert.deepEqual([large(), part("input").value, part("input").getAttribute("aria-valuetext")], ["a20 b10", "1", "20"]);
  assert.equal(document.querySelectorAll("th.chosen, td.chosen").length, 3);
  slide("3");
  await draw([10, 20, 30, 40, 50]);
  assert.equal(large(), "a50 b50", "at the newest, it follows the run");
  part(".play").click();
  assert.equal(large(), "a10 b10", "played from the first step");
  for (let step = 0; step < 4; step += 1) t.mock.timers.tick(700);
  assert.deepEqual([large(), part(".play").getAttribute("aria-pressed")], ["a50 b50", "false"]);
  document.querySelector("#status i").dataset.run = "another";
  slide("0");
  await draw([15, 25]);
  assert.equal(large(), "a25 b25", "another run is shown from its newest step");
});
