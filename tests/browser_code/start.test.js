import assert from "node:assert/strict";
import { test } from "node:test";
import { compileFunction } from "node:vm";
import { expression, openPage, settle } from "./page.js";

// Frames as browsers number them.
function start(t) {
  const window = openPage(t), frames = new Map();
  let last = 0;
  window.requestAnimationFrame = (draw) => frames.set(last += 1, draw) && last;
  window.cancelAnimationFrame = (frame) => frames.delete(frame);
  expression(window, "start.js")();
  const read = "draw(performance.now()); requestAnimationFrame(draw);";
  /** Count as a script with this name would; the times that are drawn, at once and in the next frame. */
  const count = async (filename) => {
    const times = [];
    compileFunction(read, ["draw"], { filename, contextExtensions: [window] })((time) => times.push(time));
    await settle();
    for (const draw of frames.values()) draw();
    return times;
  };
  return { window, count };
}

test("the page says which language it is in", (t) => {
  assert.equal(start(t).window.document.documentElement.lang, "{language}");
});

test("Gradio's count of seconds, which nothing shows, asks for no more frames", async (t) => {
  const times = await start(t).count("/assets/statustracker-a1b2.js");
  assert.deepEqual(times.map((time) => typeof time), ["number"]);
  t.mock.timers.tick(1000);
});

test("whatever else reads the clock keeps its frames", async (t) => {
  const times = await start(t).count("/assets/chart.js");
  assert.equal(times.length, 2);
  t.mock.timers.tick(1000);
});

test("after a second, the clock is the browser's again", (t) => {
  const { window } = start(t);
  assert.equal(Object.hasOwn(window.performance, "now"), true);
  t.mock.timers.tick(1000);
  assert.equal(Object.hasOwn(window.performance, "now"), false);
});
