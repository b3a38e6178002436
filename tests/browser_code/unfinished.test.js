import assert from "node:assert/strict";
import { test } from "node:test";
import { component, fire, openPage, settle, type } from "./page.js";

const field = (id) => `<div class="block" id="${id}"><textarea></textarea></div>`;

function open(t, { address = "?project=mira", kind = "reload", left = "", html = "" } = {}) {
  t.mock.timers.reset();
  const window = openPage(t, html);
  window.happyDOM.setURL(`http://127.0.0.1:7860/${address}`);
  window.performance.getEntriesByType = () => [{ type: kind }];
  const components = ["prompt", "negative", "name"].map((elem_id, id) => ({ id, type: "textbox", props: { elem_id } }));
  window.gradio_config = { dependencies: [], components };
  if (left) window.sessionStorage.setItem("limner-unfinished-fields", left);
  component(window, "fields");
  component(window, "unfinished");
  const area = (id) => window.document.querySelector(`#${id} textarea`);
  const leave = () => fire(window, "pagehide") && window.sessionStorage.getItem("limner-unfinished-fields");
  return { window, area, leave };
}

/** What a page leaves behind in which all its fields were edited. */
function edited(t) {
  const page = open(t, { html: field("prompt") + field("negative") + field("name") });
  for (const id of ["prompt", "name"]) type(page.area(id), `my ${id}`);
  return page.leave();
}

test("what was typed is put back after a reload, once its field is drawn, as if it was typed", async (t) => {
  const { window, area, leave } = open(t, { left: edited(t) });
  const heard = [];
  window.document.addEventListener("input", ({ target }) => heard.push(target.value));
  const again = leave();
  assert.match(again, /my prompt/, "another reload before the field is drawn loses nothing");
  window.document.body.insertAdjacentHTML("beforeend", field("prompt") + field("name"));
  await settle();
  assert.deepEqual([area("prompt").value, area("name").value, heard], ["my prompt", "", ["my prompt"]], "settings are stored");
});

test("only a reload of the same project puts it back, and nothing over newer words", async (t) => {
  const left = edited(t), html = field("prompt");
  for (const other of [{ address: "?project=noa" }, { kind: "navigate" }]) {
    assert.equal(open(t, { left, html, ...other }).area("prompt").value, "");
  }
  const { window, area } = open(t, { left });
  window.document.body.insertAdjacentHTML("beforeend", field("prompt"));
  type(area("prompt"), "newer");
  await settle();
  assert.equal(area("prompt").value, "newer");
});
