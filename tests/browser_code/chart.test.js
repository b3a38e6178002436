import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage } from "./page.js";

const curve = (losses, values = {}) => ({
  label: "run", steps: losses.length, points: losses.map((loss, place) => [place + 1, loss, 1e-4]), held_out: [], held_label: "",
  checkpoints: [], images: [], ...values,
});

function open(t, runs, window = openPage(t)) {
  const shown = component(window, "chart", { value: { label: "Loss", runs } });
  const { part, element } = shown;
  const points = (kind) => [...element.querySelectorAll(`polyline.${kind}`)].map((line) =>
    line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)));
  const at = (share) => ({ clientX: 56 + share * (720 - 56 - 12) }); // a place between first and last step
  const input = (selector, values) => fire(Object.assign(part(selector), values), "input");
  const legend = () => [...element.querySelectorAll(".legend li")].map((item) => item.textContent);
  return { ...shown, window, points, at, input, legend };
}

test("the moving average of a constant is that constant from the first step on", (t) => {
  const { legend, points } = open(t, [curve([0.25, 0.25, 0.25])]);
  assert.deepEqual(legend(), ["run: 0.250"]);
  assert.deepEqual(points("smooth"), points("raw"));
});

test("the moving average weighs values as Adam does, without the bias of its start", (t) => {
  const { legend, input } = open(t, [curve([1, 2, 4])]);
  input(".smoothing", { value: "0.5" });
  assert.deepEqual(legend(), [`run: ${((0.125 * 1 + 0.25 * 2 + 0.5 * 4) / 0.875).toPrecision(3)}`]);
  input(".smoothing", { value: "0" });
  assert.deepEqual(legend(), ["run: 4.00"]);
});

test("higher losses are drawn higher, later steps further right, and nothing outside", (t) => {
  const { points, input } = open(t, [curve([0.9, 0.5, 0.1])]);
  for (const log of [false, true]) {
    input(".log", { checked: log });
    const [line] = points("raw");
    assert.ok(line[0][1] < line[1][1] && line[1][1] < line[2][1] && line[0][0] < line[1][0]);
    assert.ok(line.flat().every((value) => value >= 0 && value <= 720) && line.every(([, y]) => y >= 10 && y <= 216));
  }
});

test("the axis of losses has round values within its range", (t) => {
  const { element } = open(t, [curve([0.1, 0.3, 0.5])]);
  const labels = [...element.querySelectorAll("text[text-anchor=end]")].map((item) => Number(item.textContent));
  assert.deepEqual(labels, [0.2, 0.4]);
});

test("the axis of steps spans all steps of all runs, also those to come", (t) => {
  const { points } = open(t, [curve([1, 1], { steps: 10 }), curve([1, 1, 1, 1], { steps: 4 })]);
  const [[, second]] = points("raw").slice(-1);
  assert.equal(second[0], Number((56 + (652 * 2) / 10).toFixed(1)));
});

test("checkpoints are marked, and a step that is read shows the preview as it was then", (t) => {
  const held_out = [[10, 0.5], [20, 0.3], [30, 0.4]], images = [[10, "/early"], [20, "/late"]];
  const { at, element, part } = open(t, [curve(Array.from({ length: 40 }, () => 0.4), { checkpoints: [20, 40], images, held_out })]);
  assert.deepEqual([...element.querySelectorAll(".checkpoint")].map((mark) => mark.textContent), [
    "[[Checkpoint at step {step}]]".replace("{step}", 20), "[[Checkpoint at step {step}]]".replace("{step}", 40)]);
  assert.deepEqual([...element.querySelectorAll("circle.held-out")].map((circle) => circle.getAttribute("r")), ["2.5", "6", "2.5"]);
  const seen = [0.1, 0.3, 0.9].map((share) => {
    fire(part("svg"), "pointermove", at(share));
    return part(".then").hidden ? "" : part(".then").getAttribute("src");
  });
  assert.deepEqual(seen, ["", "/early", "/late"]);
  fire(part("svg"), "pointerleave");
  assert.equal(part(".then").hidden, true);
});

test("dragging enlarges a range, and a double click shows all again", (t) => {
  const { at, part, points, window } = open(t, [curve(Array.from({ length: 100 }, (_, place) => place))]);
  const before = points("raw");
  fire(part("svg"), "pointerdown", at(0.6));
  fire(window.document.body, "pointerup", at(0.2));
  const [line] = points("raw");
  assert.equal(part(".whole").hidden, false);
  assert.deepEqual([line[19][0], line[59][0]], [56, 708], "steps 20 and 60 are at the edges");
  fire(part("svg"), "dblclick");
  assert.deepEqual([points("raw"), part(".whole").hidden], [before, true]);
});

test("a click is not taken for dragging", (t) => {
  const { at, part, window } = open(t, [curve([1, 2, 3])]);
  fire(part("svg"), "pointerdown", at(0.5));
  fire(window.document.body, "pointerup", at(0.505));
  assert.equal(part(".whole").hidden, true);
});

test("the pointer reads the nearest step", (t) => {
  const { at, part } = open(t, [curve([1, 2, 4], { steps: 3 })]);
  fire(part("svg"), "pointermove", at(0.6));
  assert.match(part(".reading").textContent, /step 2: loss 2\.00, smoothed 1\.53, learning rate 1\.0e-4/);
});

test("how it is shown is kept for the next visit", (t) => {
  const { input, part, window } = open(t, [curve([1, 2])]);
  input(".smoothing", { value: "0.5" });
  input(".rate", { checked: true });
  part("svg").closest("#chart").remove();
  const again = open(t, [curve([1, 2])], window);
  assert.deepEqual([again.part(".smoothing").value, again.part(".rate").checked, again.part(".log").checked], ["0.5", true, false]);
  assert.equal(again.points("rates").length, 1);
});

test("without a curve, nothing is drawn", (t) => {
  const { part, update } = open(t, [curve([1])]);
  assert.ok(part("svg").hasAttribute("hidden"));
  update({ label: "Loss", runs: [curve([1, 2])] });
  assert.ok(!part("svg").hasAttribute("hidden"));
});
