// A page without a browser, in which the scripts of ui/static run as Gradio runs them.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compileFunction } from "node:vm";
import { Window } from "happy-dom";

const GIVEN = ["element", "trigger", "props", "server", "upload", "watch"];
const path = (name) => fileURLToPath(new URL(`../../ui/static/${name}`, import.meta.url));

/** The template of this name as it is without values: its messages in English. */
function template(name) {
  const file = path(`../templates/${name}.html`), text = existsSync(file) ? readFileSync(file, "utf8") : "";
  return text.replace(/\{#.*?#\}/gs, "").replace(/\{\{ (?:_|rich_text)\("([^"]*)"\) \}\}/g, "$1");
}

/** A new page; `t.mock.timers` is its clock from here on. */
export function openPage(t, html = "") {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const window = new Window({ url: "http://127.0.0.1:7860/", width: 1280, height: 800 });
  window.document.body.innerHTML = html;
  return window;
}

function compile(window, name, parameters, frame = (source) => source) {
  const { setTimeout, clearTimeout, Date } = globalThis, clock = { setTimeout, clearTimeout, Date };
  const options = { filename: path(name), contextExtensions: [window, clock] };
  return compileFunction(frame(readFileSync(path(name), "utf8")), parameters, options);
}

/** The function in a file that is passed to an event of Gradio as `js`. */
export const expression = (window, name) => compile(window, name, [], (source) => `return (${source})`)();

/** A component with the template and the script of this name; `sent` are the events that it triggers. */
export function component(window, name, { id = name, value = {}, server = {}, html } = {}) {
  const element = window.document.createElement("div"), props = { value }, sent = [], watching = [];
  element.id = id;
  element.innerHTML = html ?? template(name);
  window.document.body.append(element);
  const given = { element, props, server, trigger: (...event) => sent.push(event), watch: (_, changed) => watching.push(changed) };
  compile(window, `${name}.js`, GIVEN)(...GIVEN.map((key) => given[key]));
  const update = (newer, changedHtml) => {
    props.value = newer;
    if (changedHtml !== undefined) element.innerHTML = changedHtml;
    for (const changed of watching) changed();
  };
  return { element, sent, update, part: (selector) => element.querySelector(selector) };
}

/** Let everything go on that waits for an answer and not for the clock. */
export async function settle() {
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resume) => setImmediate(resume));
}

/** A function of the server whose answers come when the test gives them: `calls[n].answer(...)`. */
export function slowly(calls) {
  return (argument) => new Promise((answer, fail) => calls.push({ argument: structuredClone(argument), answer, fail }));
}

export function fire(target, kind, values = {}) {
  const window = target.ownerDocument?.defaultView ?? target.defaultView ?? target;
  const event = new window.Event(kind, { bubbles: true, cancelable: true });
  target.dispatchEvent(Object.assign(event, values));
  return event;
}

export function type(area, text) {
  area.value = text;
  fire(area, "input");
}
