import assert from "node:assert/strict";
import { test } from "node:test";
import { compileFunction } from "node:vm";
import { expression, fire, openPage, settle, slowly, type } from "./page.js";

const TABS = `<div id="tabs"><button role="tab" id="tab-images-button"></button><button role="tab" id="tab-train-button"></button></div>`;

function start(t, address = "?project=mira") {
  const window = openPage(t, TABS), opened = [], pressed = [], frames = new Map();
  let last = 0; // frames are numbered as browsers do it
  window.requestAnimationFrame = (draw) => frames.set(last += 1, draw) && last;
  window.cancelAnimationFrame = (frame) => frames.delete(frame);
  window.happyDOM.setURL(`http://127.0.0.1:7860/${address}`);
  Object.assign(window.location, { assign: (url) => opened.push(url), reload: () => opened.push("reload") });
  expression(window, "start.js")();
  for (const button of window.document.querySelectorAll("[role=tab]")) button.addEventListener("click", () => pressed.push(button.id));
  /** Go back to an address, as the browser does. */
  const back = (url) => {
    window.happyDOM.setURL(`http://127.0.0.1:7860/${url}`);
    fire(window, "popstate");
  };
  const read = "draw(performance.now()); requestAnimationFrame(draw);";
  /** Count as a script with this name would; the times that are drawn, at once and in the next frame. */
  const count = async (filename) => {
    const times = [];
    compileFunction(read, ["draw"], { filename, contextExtensions: [window] })((time) => times.push(time));
    await settle();
    for (const draw of frames.values()) draw();
    return times;
  };
  return { window, opened, pressed, back, count, query: () => window.location.search };
}

/** A page on which request 7 fills two fields and a report; `fill` sends one, and returns how to answer it and what arrives. */
function filling(t, kind = "textbox") {
  const window = openPage(t, `${TABS}<div class="block" id="steps"><input></div>`), calls = [];
  window.fetch = slowly(calls);
  expression(window, "start.js")();
  const components = [["steps", kind], ["rank", "json"], ["report", "html"]].map(([elem_id, type], id) => ({ id, type, props: { elem_id } }));
  window.gradio_config = { dependencies: [{ id: 7, outputs: [0, 1, 2] }], components };
  const fill = () => {
    const arrived = window.fetch("/gradio_api/run/predict", { body: JSON.stringify({ fn_index: 7 }) });
    const { answer } = calls.at(-1);
    return async (...data) => {
      answer(new Response(JSON.stringify({ data })));
      return (await (await arrived).json()).data;
    };
  };
  const field = window.document.querySelector("#steps input");
  /** What the two fields hold at a click, once what fills them is answered, if a browser has these values then. */
  const click = (...values) => window.limner.filled(["steps", "rank"], values);
  window.limnerForm = { store: async () => {} };
  const leave = async () => { await settle(); t.mock.timers.tick(1); await settle(); };
  return { field, fill, edit: (text = "7") => type(field, text), click, leave };
}
const NOTHING = { __type__: "update" };

test("a comma in a number is a decimal point, and the field says so until it is left", (t) => {
  const { window } = start(t), inserted = [];
  window.document.execCommand = (...command) => inserted.push(command);
  window.document.body.innerHTML = '<input type="number"><input>';
  const [number, text] = window.document.querySelectorAll("input");
  const typed = [[number, ","], [number, "-1,5"], [number, "1.5"], [number, null], [text, ","]];
  const isTaken = typed.map(([field, data]) => fire(field, "beforeinput", { data }).defaultPrevented);
  assert.deepEqual(isTaken, [true, true, false, false, false]);
  assert.deepEqual(inserted, [["insertText", false, "."], ["insertText", false, "-1.5"]]);
  assert.match(number.validationMessage, /decimal point/);
  fire(number, "blur");
  assert.equal(number.validationMessage, "");
});

test("an answer fills what nobody has edited since its request left", async (t) => {
  const { edit, fill } = filling(t);
  edit();
  const answer = fill();
  assert.deepEqual(await answer(1, 2, "read"), [1, 2, "read"]);
  const late = fill();
  edit();
  assert.deepEqual(await late({ __type__: "update", value: 3, visible: true }, 4), [{ __type__: "update", visible: true }, 4]);
});

test("what was typed in the moment before Gradio fills a field once more is typed again, once", async (t) => {
  const { edit, field, fill } = filling(t), typed = [];
  const moment = (value) => { field.value = value; t.mock.timers.tick(60); return field.value; };
  field.addEventListener("input", () => typed.push(field.value));
  edit();
  assert.deepEqual([moment("3"), typed], ["7", ["7", "7"]]);
  assert.equal(moment("3"), "3");
  const answer = fill();
  await answer(5);
  assert.equal(moment("5"), "5", "an answer fills it");
  edit();
  await fill()(6);
  assert.equal(moment("6"), "6", "also right after it was typed in");
});

test("a number reaches Gradio when typing pauses or the field is left", (t) => {
  const { edit, field } = filling(t, "number"), taken = [];
  field.addEventListener("input", () => taken.push(field.value));
  for (const text of ["1", "", "", "1e-4"]) edit(text); // what a browser has of 1, 1e, 1e- and 1e-4
  t.mock.timers.tick(60);
  assert.deepEqual(taken, ["1e-4"]);
  edit("5");
  fire(field, "change");
  assert.deepEqual(taken, ["1e-4", "5"]);
  t.mock.timers.tick(60);
  edit("");
  t.mock.timers.tick(60);
  assert.deepEqual(taken, ["1e-4", "5", ""], "what is no number is refused by the form");
});

test("of two answers, that to the later request stays, whichever comes first", async (t) => {
  const { fill } = filling(t), first = fill(), second = fill(), third = fill();
  assert.deepEqual(await second(5, 6, "second"), [5, 6, "second"]);
  assert.deepEqual(await first(3, 4, "first"), [NOTHING, NOTHING, "first"], "what is no field shows what was read last");
  assert.deepEqual(await third(NOTHING, 8), [NOTHING, 8], "what says nothing of a field replaces nothing");
  assert.deepEqual(await fill()(9, NOTHING), [9, NOTHING]);
  const [early, late] = [fill(), fill()], offers = (...choices) => ({ __type__: "update", choices });
  await late(offers("new"), NOTHING);
  assert.deepEqual(await early({ ...offers("old"), visible: true }, 9), [{ __type__: "update", visible: true }, 9]);
  const [asked, read] = [fill(), fill()];
  await read(offers("old"), NOTHING, { revision: 1 });
  assert.deepEqual(await asked(offers("new"), NOTHING, { revision: 2 }), [offers("new"), NOTHING, { revision: 2 }], "it was read later");
});

test("at a click, fields hold what answers bring to requests that were made before it", async (t) => {
  const { click, edit, fill, leave } = filling(t);
  await fill()(1, 2);
  edit();
  const before = fill(), values = click(7, 2);
  await leave();
  const after = fill();
  edit("8");
  await after(5, 6);
  await before(3, 4);
  assert.deepEqual(await values, [3, 4], "nothing of what is done after it, and what was asked for although it was edited then");
  const late = fill();
  edit("9");
  const typed = click(9, 4);
  await leave();
  await late(3, 5);
  assert.deepEqual(await typed, [9, 5], "an edit before the click stays");
});

test("a view that chooses a run does not, if another one was chosen since", async (t) => {
  const { edit, fill, field } = filling(t), view = { revision: 1, asked: "", run: "a" };
  field.parentElement.id = "run";
  edit();
  assert.deepEqual(await fill()(NOTHING, NOTHING, { ...view }), [NOTHING, NOTHING, view]);
  const late = fill();
  edit();
  assert.deepEqual(await late(NOTHING, NOTHING, { ...view }), [NOTHING, NOTHING, { ...view, asked: "a" }]);
});

test("the page says which language it is in", (t) => {
  assert.equal(start(t).window.document.documentElement.lang, "{language}");
});

test("another project is another page, which gets the report of this one", (t) => {
  const { opened, window } = start(t);
  window.limner.open("mira & rin", "Added 2 images.");
  assert.deepEqual(opened, ["/?project=mira%20%26%20rin"]);
  assert.equal(window.sessionStorage.getItem("limner-report"), "Added 2 images.");
  window.limner.arrive("mira & rin");
  assert.equal(window.sessionStorage.getItem("limner-report"), null);
});

test("a tab that is chosen stands in the address, and Back chooses the one before", (t) => {
  const { back, opened, pressed, query, window } = start(t);
  window.document.getElementById("tab-train-button").click();
  assert.equal(query(), "?project=mira&tab=train");
  back("?project=mira");
  assert.deepEqual([pressed, opened], [["tab-train-button", "tab-images-button"], []]);
});

test("Back to another project or run loads its page", (t) => {
  const { back, opened, window } = start(t);
  window.limner.show({ run: "a" });
  back("?project=mira");
  back("?project=rin");
  assert.deepEqual(opened, ["reload", "reload"]);
});

test("a question is answered by a button, and what was typed comes back", async (t) => {
  const { window } = start(t), box = window.document.querySelector("dialog.ask");
  box.showModal ??= () => {};
  const close = (value) => {
    box.returnValue = value;
    fire(box, "close");
  };
  const yes = window.limner.ask("Really?");
  assert.equal(box.querySelector("input").hidden, true);
  close("yes");
  assert.equal(await yes, "yes");
  const name = window.limner.ask("Name:", "old");
  box.querySelector("input").value = "new";
  close("yes");
  assert.equal(await name, "new");
  const nothing = window.limner.ask("Name:", "old");
  close("");
  assert.equal(await nothing, "");
  await settle();
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
