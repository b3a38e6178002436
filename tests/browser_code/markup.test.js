// What comes from images, captions, files and other machines is shown as text, whatever it contains.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { ESLint } from "eslint";
import { component, openPage } from "./page.js";

const HOSTILE = "</b>\"'><img src=x onerror=alert(1)><script>alert(2)</script>${alert(3)}{{constructor.constructor('alert(4)')()}}";
const side = (name) => ({ name, url: "/a", text: HOSTILE });
const VALUES = {
  captions: {
    project: "mira", at: 1, asked: { page: 1, order: "name", kind: "", tag: "" }, selection: { page: 1, order: "name", kind: "", tag: "" },
    page: 1, last: 2, left: 0, any: true, proposals: HOSTILE, only: HOSTILE, orders: [[HOSTILE, HOSTILE]], paged: true, pages: [1, 2],
    items: [{
      name: HOSTILE, caption: HOSTILE, url: "/a", large: "/a", size: [64, 64], crop: [0, 0], facts: HOSTILE, edited: "", mask: "",
      large_mask: "", proposed: HOSTILE, look: "", ratio: "1", cut: "", badges: [{ text: HOSTILE, title: HOSTILE, look: "", kind: HOSTILE }],
      tokens: HOSTILE, long: "",
    }],
  },
  overview: {
    heading: HOSTILE, serious: true, tags: [{ tag: HOSTILE, count: 2 }], sizes: [{ size: HOSTILE, count: 3, share: 1, text: HOSTILE }],
    findings: [{
      title: HOSTILE, effect: HOSTILE, remedy: HOSTILE, files: HOSTILE, show: true, kind: HOSTILE, button: HOSTILE, look: "",
      pairs: [[side(HOSTILE), side(HOSTILE)]],
    }],
  },
  chart: {
    label: HOSTILE,
    runs: [0, 1].map(() => ({
      label: HOSTILE, steps: 2, points: [[1, 0.5, 1e-4], [2, 0.4, 1e-4]], held_out: [[1, 0.5], [2, 0.4]], held_label: HOSTILE,
      checkpoints: [2], images: [[2, HOSTILE]],
    })),
  },
};

for (const [name, value] of Object.entries(VALUES)) {
  test(`${name} shows a value as text`, (t) => {
    const window = openPage(t);
    window.limnerFields = { moment: () => ({}), post: async () => {} };
    const { element } = component(window, name, { value });
    assert.equal(element.querySelectorAll("script, [onerror], img[src='x']").length, 0);
    const shown = element.textContent + [...element.querySelectorAll("textarea")].map((area) => area.value).join("");
    assert.ok(shown.includes(HOSTILE), "as it came");
  });
}

const LINT = new ESLint({ overrideConfigFile: fileURLToPath(new URL("eslint.config.js", import.meta.url)), cwd: fileURLToPath(new URL("../..", import.meta.url)) });
const refused = async (code) => {
  const [{ messages }] = await LINT.lintText(code, { filePath: "ui/static/anything.js" });
  return messages.length > 0;
};

test("markup of a value is refused by the linter", async () => {
  for (const code of [
    "element.innerHTML = props.value;", "element.innerHTML = `<b>${props.value}</b>`;", "element.innerHTML += `<b></b>`;",
    "element.outerHTML = `<b>` + props.value;", "element['innerHTML'] = props.value;", "element.insertAdjacentHTML('beforeend', props.value);",
    "document.write(props.value);", "document.createRange().createContextualFragment(props.value);", "element.srcdoc = props.value;",
    "eval(props.value);", "setTimeout('a()');", "new Function(props.value)();", "element.setAttribute('onclick', props.value);",
    "new DOMParser().parseFromString(props.value, 'text/html');", "element.href = 'javascript:a()';",
  ]) assert.ok(await refused(code), code);
  for (const code of ["element.innerHTML = `<b></b>`;", "element.textContent = props.value;"]) assert.ok(!(await refused(code)), code);
});
