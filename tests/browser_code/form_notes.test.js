import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage, settle, slowly, type } from "./page.js";

const FORM = `<div id="train-form"><input id="find-setting"><p class="found"></p>
  <div class="section"><h2>Optimizer</h2><button class="fold" data-group="optimizer" aria-expanded="true"></button>
    <button class="reset-group" data-text="Reset {n}" hidden></button>
    <div id="form-rate">Learning rate <input></div><div id="form-beta">beta 2 <input type="checkbox"></div></div>
  <div class="section"><h2>Data</h2><button class="fold" data-group="data" aria-expanded="true"></button>
    <button class="reset-group" data-text="Reset {n}" hidden></button>
    <div id="form-size">Resolution <input role="combobox"></div></div></div>`;
const WORDS = { reset: "Reset", none: "No setting matches." };
const notes = (changed = {}, conflicts = {}) => ({ changed, conflicts, words: WORDS });

function open(t, value = notes(), window = openPage(t, FORM)) {
  const stored = [];
  const store = slowly(stored);
  window.limnerFields = { store: (fields) => (Object.keys(fields).length ? store(fields) : Promise.resolve()) };
  const shown = component(window, "form_notes", { value });
  const { document } = window;
  return { ...shown, window, stored, form: window.limnerForm, find: (selector) => document.querySelector(selector),
    all: (selector) => [...document.querySelectorAll(selector)] };
}

test("a changed field says what is usual, and its button resets it alone", (t) => {
  const { all, sent, update } = open(t, notes({ "form-rate": "Default: 1" }));
  assert.deepEqual(all("p.changed").map(({ textContent }) => textContent), ["Default: 1 Reset"]);
  all("p.changed button")[0].click();
  assert.deepEqual(sent, [["undo", { fields: ["form-rate"] }]]);
  update(notes({ "form-rate": "Default: 2" }));
  assert.deepEqual(all("p.changed").map(({ textContent }) => textContent), ["Default: 2 Reset"]);
  update(notes());
  assert.equal(all("p.changed").length, 0);
});

test("a conflict is an alert, and its button resolves it", (t) => {
  const { find, sent } = open(t, notes({}, { "form-size": { reason: "Too large.", fix: "Set to 512" } }));
  assert.equal(find("#form-size p.conflict").getAttribute("role"), "alert");
  find("#form-size p.conflict button").click();
  assert.deepEqual(sent, [["apply", { field: "form-size" }]]);
});

test("fields that are drawn later are marked, too", async (t) => {
  const { find } = open(t, notes({ "form-late": "Default: 1" }));
  find(".section").insertAdjacentHTML("beforeend", '<div id="form-late"></div>');
  await settle();
  assert.equal(find("#form-late p.changed").textContent, "Default: 1 Reset");
});

test("a group resets its changed fields, and says how many there are", (t) => {
  const { all, sent } = open(t, notes({ "form-rate": "1", "form-beta": "2" }));
  assert.deepEqual(all(".reset-group").map(({ hidden, textContent }) => [hidden, textContent]), [[false, "Reset 2"], [true, "Reset 0"]]);
  all(".reset-group")[0].click();
  assert.deepEqual(sent, [["undo", { fields: ["form-rate", "form-beta"] }]]);
});

test("a folded group stays so after a reload, but opens for a conflict", (t) => {
  const { find, window } = open(t);
  const isFolded = () => find(".section").classList.contains("folded");
  find(".fold").click();
  assert.equal(isFolded(), true);
  window.document.body.innerHTML = FORM;
  const { update } = open(t, undefined, window);
  assert.equal(isFolded(), true);
  update(notes({}, { "form-rate": { reason: "Too high.", fix: "" } }));
  assert.equal(isFolded(), false);
});

test("the search finds titles and fields, whatever their spelling, and says if it finds none", (t) => {
  const { all, find } = open(t);
  const search = (text) => {
    type(find("#find-setting"), text);
    return all("[id^='form-']:not(.unmatched)").map(({ id }) => id);
  };
  assert.deepEqual(search("LEARNING-RATE"), ["form-rate"]);
  assert.deepEqual(search("data"), ["form-size"]);
  assert.deepEqual(search("optimizer beta"), ["form-beta"]);
  assert.equal(find(".found").textContent, "");
  assert.deepEqual(search("xyz"), []);
  assert.equal(find(".found").textContent, WORDS.none);
});

test("the search works before the server has said which fields are changed", (t) => {
  const { find } = open(t, {});
  type(find("#find-setting"), "xyz");
  assert.equal(find("#form-rate").classList.contains("unmatched"), true);
});

test("an edit is reported and stored once, when typing pauses or the field is left", (t) => {
  const { find, sent, stored } = open(t);
  const field = find("#form-rate input");
  type(field, "1");
  t.mock.timers.tick(249);
  type(field, "12");
  t.mock.timers.tick(249);
  assert.equal(sent.length, 0);
  fire(field, "focusout");
  t.mock.timers.tick(1000);
  assert.deepEqual(sent, [["input"]]);
  assert.deepEqual(stored.map(({ argument }) => argument), [{ "form-rate": "12" }]);
});

test("what was edited last is stored as the page is left", (t) => {
  const { find, stored, window } = open(t);
  fire(Object.assign(find("#form-beta input"), { checked: true }), "input");
  type(find("#form-rate input"), "1");
  fire(window, "pagehide");
  assert.deepEqual(stored.map(({ argument }) => argument), [{ "form-beta": true, "form-rate": "1" }]);
});

test("the form is filled after what was edited before is stored", async (t) => {
  const { find, form, stored } = open(t);
  const order = [];
  type(find("#form-rate input"), "1");
  const asked = ["first", "second"].map((name) => form.store().then(() => order.push(name)));
  await settle();
  assert.deepEqual(order, []);
  stored[0].answer();
  await Promise.all(asked);
  assert.deepEqual(order, ["first", "second"]);
});

test("a dropdown is reported when it is left, as typing in it only searches its list", (t) => {
  const { find, sent } = open(t);
  type(find("#form-size input"), "51");
  t.mock.timers.tick(1000);
  assert.equal(sent.length, 0);
  fire(find("#form-size input"), "focusout");
  t.mock.timers.tick(0);
  assert.deepEqual(sent, [["input"]]);
});

test("exported settings are downloaded under their name, and then forgotten", async (t) => {
  const { form, window } = open(t), files = new Map(), saved = [];
  window.URL.createObjectURL = (blob) => files.set("blob:1", blob) && "blob:1";
  window.URL.revokeObjectURL = (url) => files.delete(url);
  window.HTMLAnchorElement.prototype.click = function click() { saved.push([this.download, files.get(this.href)]); };
  form.save({ name: "mira.toml", text: "rank = 8" });
  assert.deepEqual([saved[0][0], await saved[0][1].text()], ["mira.toml", "rank = 8"]);
  t.mock.timers.tick(10_000);
  assert.equal(files.size, 0);
});
