import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage, settle, slowly, type } from "./page.js";

const card = (name, caption) => ({
  name, caption, url: "", large: `/${name}`, size: [64, 64], crop: [0, 0], facts: "64 x 64", edited: "", mask: "", large_mask: "",
  proposed: "", look: "", ratio: "1", cut: "", badges: [], tokens: "2 / 77", long: "",
});
const FIRST = { page: 1, order: "name", kind: "", tag: "" };
const grid = (captions, values = {}) => ({
  project: "mira", at: 1, asked: FIRST, selection: FIRST, page: 1, last: 1, left: 0, any: true, proposals: "", only: "", orders: [], paged: false, pages: [],
  items: Object.entries(captions).map(([name, caption]) => card(name, caption)), ...values,
});
const SENT = { page: "tab", number: 7 };
const saved = (caption, at) => ({ ok: true, at, caption, badges: [], tokens: "3 / 77", long: "" });

function open(t, value = grid({ "a.png": "a cat", "b.png": "a dog" }), window = openPage(t)) {
  const calls = [], measured = [], removals = [];
  window.limnerFields = { moment: () => SENT, post: async () => {} };
  const server = { save_caption: slowly(calls), measure: slowly(measured), remove: slowly(removals) };
  const shown = component(window, "captions", { value, server });
  const area = (name) => [...shown.element.querySelectorAll("textarea")].find(({ dataset }) => dataset.name === name);
  const status = () => shown.part(".save").textContent;
  const names = () => [...shown.element.querySelectorAll("textarea")].map(({ dataset }) => dataset.name).join(" ");
  return { ...shown, window, calls, measured, removals, area, names, status, of: (name) => area(name).closest(".card") };
}

test("a caption is saved when typing pauses", async (t) => {
  const { area, calls, status } = open(t);
  type(area("a.png"), "a red c");
  t.mock.timers.tick(500);
  type(area("a.png"), "a red cat");
  t.mock.timers.tick(599);
  assert.equal(calls.length, 0);
  t.mock.timers.tick(1);
  assert.deepEqual(calls.map(({ argument }) => argument), [{ project: "mira", name: "a.png", text: "a red cat", base: "a cat", ...SENT }]);
  assert.equal(status(), "[[Saving…]]");
  calls[0].answer(saved("a red cat", 2));
  await settle();
  assert.equal(status(), "[[All captions are saved.]]");
});

test("an answer of the server does not overwrite what is being typed", (t) => {
  const { area, update } = open(t);
  type(area("a.png"), "a red");
  update(grid({ "a.png": "a cat, sitting", "b.png": "a dog, running" }, { at: 5 }));
  assert.equal(area("a.png").value, "a red");
  assert.equal(area("b.png").value, "a dog, running");
});

test("what the server read before a save does not bring the old text back", async (t) => {
  const { area, calls, update } = open(t);
  type(area("a.png"), "a red cat");
  t.mock.timers.tick(600);
  calls[0].answer(saved("a red cat", 7));
  await settle();
  update(grid({ "a.png": "a cat" }, { at: 6 }));
  assert.equal(area("a.png").value, "a red cat");
  update(grid({ "a.png": "a blue cat" }, { at: 8 }));
  assert.equal(area("a.png").value, "a blue cat");
});

test("text typed during a save is saved after it, as a change of what was saved", async (t) => {
  const { area, calls, status } = open(t);
  type(area("a.png"), "a red cat");
  t.mock.timers.tick(600);
  type(area("a.png"), "a red cat, sitting");
  t.mock.timers.tick(600);
  assert.equal(calls.length, 1, "one request at a time");
  calls[0].answer(saved("a red cat", 2));
  await settle();
  t.mock.timers.tick(0);
  assert.deepEqual(calls[1].argument, { project: "mira", name: "a.png", text: "a red cat, sitting", base: "a red cat", ...SENT });
  assert.equal(status(), "[[Saving…]]");
});

test("a text that could not be saved stays, is tried again, and outlives a reload", async (t) => {
  const { area, calls, status, window } = open(t);
  type(area("a.png"), "a red cat");
  t.mock.timers.tick(600);
  calls[0].fail(new Error("offline"));
  await settle();
  assert.match(status(), /Not saved: \[\[the server is not responding/);
  t.mock.timers.tick(3000);
  assert.equal(calls[1].argument.text, "a red cat");
  window.document.body.innerHTML = "";
  const reloaded = open(t, undefined, window);
  assert.equal(reloaded.area("a.png").value, "a red cat");
});

test("of two pages that changed a caption, the user chooses", async (t) => {
  for (const keep of [true, false]) {
    const { area, calls, of, status, update } = open(t, undefined, openPageAgain(t));
    type(area("a.png"), "mine");
    t.mock.timers.tick(600);
    calls[0].answer({ ok: true, conflict: "theirs" });
    await settle();
    assert.equal(of("a.png").querySelector(".conflict q").textContent, "theirs");
    assert.match(status(), /another page or program changed the caption of a\.png/);
    update(grid({ "a.png": "theirs", "b.png": "a dog" }, { at: 5 }));
    t.mock.timers.tick(10_000);
    assert.equal(calls.length, 1, "nothing is sent before the choice");
    of("a.png").querySelector(keep ? ".keep-mine" : ".take-theirs").click();
    assert.equal(area("a.png").value, keep ? "mine" : "theirs");
    const chosen = { project: "mira", name: "a.png", text: "mine", base: "theirs", ...SENT };
    assert.deepEqual(calls.slice(1).map(({ argument }) => argument), keep ? [chosen] : []);
    assert.equal(of("a.png").querySelector(".conflict").hidden, true);
  }
});

function openPageAgain(t) {
  t.mock.timers.reset();
  return openPage(t);
}

test("a text is sent to the project it was typed in, whichever is shown by then", (t) => {
  const { area, calls, update } = open(t);
  type(area("a.png"), "a red cat");
  update(grid({ "a.png": "another one" }, { project: "style", at: 5 }));
  assert.equal(area("a.png").value, "another one");
  t.mock.timers.tick(600);
  assert.deepEqual(calls.map(({ argument }) => [argument.project, argument.text]), [["mira", "a red cat"]]);
});

test("cards disappear at once, and what was read before does not bring them back", async (t) => {
  const { names, of, removals, sent, update } = open(t, grid({ "a.png": "", "b.png": "", "c.png": "" }));
  of("a.png").querySelector(".remove").click();
  of("b.png").querySelector(".remove").click();
  await settle();
  assert.deepEqual([names(), removals.length], ["c.png", 1], "one request after the other");
  update(grid({ "a.png": "", "b.png": "", "c.png": "" }, { at: 2 }));
  assert.equal(names(), "c.png");
  removals[0].answer({ ok: true, at: 3, report: "Removed a.png." });
  await settle();
  assert.deepEqual(removals.map(({ argument }) => argument.names), [["a.png"], ["b.png"]]);
  assert.deepEqual(sent, [["delete", { report: "Removed a.png.", bad: false }]]);
  update(grid({ "a.png": "", "c.png": "" }, { at: 4 }));
  assert.equal(names(), "a.png c.png", "it was brought back");
});

test("a card that could not be removed comes back with a sentence, and with what was typed", async (t) => {
  const { area, calls, names, of, removals, sent } = open(t);
  type(area("a.png"), "a red cat");
  of("a.png").querySelector(".remove").click();
  await settle();
  removals[0].answer({ ok: false, error: "The disk is full." });
  await settle();
  assert.deepEqual([names(), area("a.png").value], ["a.png b.png", "a red cat"]);
  assert.deepEqual(sent, [["delete", { report: "The disk is full.", bad: true }]]);
  t.mock.timers.tick(600);
  assert.equal(calls[0].argument.text, "a red cat");
});

test("a removal is asked for again while the server is away", async (t) => {
  const { names, of, removals, sent } = open(t);
  of("a.png").querySelector(".remove").click();
  for (const number of [0, 1, 2, 3]) {
    await settle();
    assert.deepEqual([names(), sent, removals[number].argument.names], ["b.png", [], ["a.png"]]);
    removals[number].fail();
    await settle();
    t.mock.timers.tick(500 * (number + 1));
  }
  await settle();
  assert.deepEqual([names(), removals.length, sent[0][1].bad], ["a.png b.png", 4, true]);
});

test("what a server never answers is asked for again, and nothing waits for it without limit", async (t) => {
  const { area, calls, of, removals, sent, window } = open(t);
  type(area("b.png"), "a red dog");
  of("a.png").querySelector(".remove").click();
  let isOver = false;
  window.limnerSaved().then(() => { isOver = true; });
  for (let second = 0; second < 250 && !isOver; second += 1) {
    await settle();
    t.mock.timers.tick(1000);
  }
  await settle();
  assert.deepEqual([isOver, removals.length, sent[0][1].bad], [true, 4, true]);
  assert.ok(calls.length > 1, "a caption is sent again");
});

test("images whose removal was not answered are removed by the next page", async (t) => {
  const { of, removals, window } = open(t), posted = [];
  window.limnerFields.post = async ({ removals: sent }) => posted.push(structuredClone(sent));
  for (const name of ["a.png", "b.png"]) of(name).querySelector(".remove").click();
  await settle();
  fire(window, "pagehide");
  const [first, second] = ["a.png", "b.png"].map((name) => ({ project: "mira", names: [name] }));
  assert.deepEqual([removals.length, posted], [1, [[first, second]]]);
  removals[0].fail(); // as the browser ends it
  await settle();
  window.document.body.innerHTML = "";
  const reloaded = open(t, grid({ "a.png": "", "b.png": "", "c.png": "" }), window);
  assert.equal(reloaded.names(), "c.png");
  for (const number of [0, 1]) {
    await settle();
    assert.deepEqual(reloaded.removals[number].argument, [first, second][number]);
    reloaded.removals[number].answer({ ok: true, at: 3 + number, report: "" });
  }
  await settle();
  assert.equal(window.sessionStorage.getItem("limner-unanswered-removals"), "[]");
  window.document.body.innerHTML = "";
  const other = open(t, grid({ "a.png": "" }, { project: "other" }), window);
  assert.deepEqual([other.names(), other.removals], ["a.png", []], "those of another project have the same names");
});

test("the text of a removed image is not saved", async (t) => {
  const { area, calls, of, removals, status, update } = open(t);
  type(area("a.png"), "a red cat");
  of("a.png").querySelector(".remove").click();
  await settle();
  removals[0].answer({ ok: true, at: 4, report: "" });
  await settle();
  update(grid({ "b.png": "a dog" }, { at: 5 }));
  t.mock.timers.tick(10_000);
  assert.equal(calls.length, 0);
  assert.equal(status(), "[[All captions are saved.]]");
});

test("of several choices the last one is drawn, in whatever order the answers come", (t) => {
  const { names, sent, update, window } = open(t);
  const filter = (detail) => window.document.dispatchEvent(new window.CustomEvent("limner-filter", { detail }));
  filter({ tag: "cat" });
  filter({ tag: "dog" });
  const [cat, dog] = ["cat", "dog"].map((tag) => ({ asked: { ...FIRST, tag }, selection: { ...FIRST, tag } }));
  assert.deepEqual([window.limnerSelection(), sent], [{ ...dog.asked, sent: SENT }, [["select"], ["select"]]]);
  update(grid({ "b.png": "a dog" }, { at: 5, ...dog }));
  update(grid({ "a.png": "a cat" }, { at: 6, ...cat }));
  assert.equal(names(), "b.png");
  update(grid({ "c.png": "a dog" }, { at: 4, ...dog }));
  assert.equal(names(), "b.png", "an older answer");
  assert.deepEqual(sent.slice(2), [["end"], ["end"]], "what came late is asked for again, as it was drawn beside the grid");
});

test("a change of all captions waits until what was typed and removed is so on disk", async (t) => {
  const { area, calls, of, removals, window } = open(t);
  of("b.png").querySelector(".remove").click();
  type(area("a.png"), "a red cat");
  let isOnDisk = false;
  const waiting = window.limnerSaved().then(() => { isOnDisk = true; });
  await settle();
  assert.deepEqual([calls.length, isOnDisk], [0, false]);
  removals[0].answer({ ok: true, at: 2, report: "Removed b.png." });
  await settle();
  t.mock.timers.tick(100);
  await settle();
  assert.deepEqual([calls.length, isOnDisk], [1, false]);
  calls[0].answer(saved("a red cat", 2));
  await settle();
  t.mock.timers.tick(100);
  await waiting;
});

test("Enter goes to the next caption, and from the last one to the next page", (t) => {
  const { area, sent, update, window } = open(t, grid({ "a.png": "a cat", "b.png": "a dog" }, { last: 2 }));
  fire(area("a.png"), "keydown", { key: "Enter" });
  assert.equal(window.document.activeElement, area("b.png"));
  fire(area("b.png"), "keydown", { key: "Enter" });
  const second = { ...FIRST, page: 2 };
  assert.deepEqual([sent, window.limnerSelection()], [[["select"]], { ...second, sent: SENT }]);
  update(grid({ "c.png": "a bird", "d.png": "a fish" }, { page: 2, last: 2, asked: second, selection: second }));
  assert.equal(window.document.activeElement, area("c.png"));
});

test("the card that is typed in keeps the focus when others come and go", (t) => {
  const { area, element, update, window } = open(t);
  const typed = area("b.png");
  typed.focus();
  update(grid({ "0.png": "new", "b.png": "a dog", "c.png": "new" }));
  assert.equal(window.document.activeElement, typed);
  assert.deepEqual([...element.querySelectorAll("textarea")].map(({ dataset }) => dataset.name), ["0.png", "b.png", "c.png"]);
});

test("images are measured until none is left, by one request at a time", async (t) => {
  const { measured, sent, update } = open(t, grid({ "a.png": "" }, { left: 30 }));
  update(grid({ "a.png": "" }, { left: 30 }));
  assert.equal(measured.length, 1);
  measured[0].answer({ ok: true, left: 6 });
  await settle();
  assert.deepEqual(measured[1].argument, { project: "mira" });
  measured[1].answer({ ok: true, left: 0 });
  await settle();
  assert.deepEqual([measured.length, sent], [2, [["end"]]]);
});

test("what is typed for an image that is gone is not sent again and again", async (t) => {
  const { area, calls, sent, status, window } = open(t, grid({ "a.png": "", "b.png": "", "c.png": "" }));
  type(area("a.png"), "a red cat");
  t.mock.timers.tick(600);
  calls[0].answer({ ok: true, gone: "a.png is no longer in the project." });
  await settle();
  t.mock.timers.tick(10_000);
  assert.deepEqual([calls.length, window.sessionStorage.getItem("limner-unsaved-captions")], [1, "[]"]);
  assert.deepEqual([status(), sent], ["[[All captions are saved.]]", [["delete", { report: "a.png is no longer in the project.", bad: true }]]]);
  type(area("b.png"), "a blue cat");
  type(area("c.png"), "a green cat");
  t.mock.timers.tick(600);
  for (const [number, gone] of ["b.png: a blue cat.", "c.png: a green cat."].entries()) {
    calls[number + 1].answer({ ok: true, gone });
    await settle();
  }
  assert.equal(sent.at(-1)[1].report, "b.png: a blue cat. c.png: a green cat.", "no words are lost");
});

test("captions are text, whatever they contain", (t) => {
  const { area, element } = open(t, grid({ "a.png": "<img src=x onerror=alert(1)> ${1 + 1}" }));
  assert.equal(area("a.png").value, "<img src=x onerror=alert(1)> ${1 + 1}");
  assert.equal(element.querySelectorAll("[onerror]").length, 0);
});
