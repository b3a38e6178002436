// Problems and tags. What the user opened or closed stays so when the value changes. Captions are inserted as text:
// overview.html contains no values, as Gradio would run a value in a template as a program.
const ROW = 20, WIDE = 320;
const opened = new Map();
const view = /** @type {View<Overview>} */ (props);

function row(/** @type {Finding} */ finding) {
  const made = /** @type {HTMLElement} */ (element.querySelector("template").content.querySelector(".finding").cloneNode(true));
  if (finding.look) made.classList.add(finding.look);
  made.querySelector(".title").textContent = finding.title;
  made.querySelector(".advice").textContent = `${finding.effect} ${finding.remedy}`;
  made.querySelector(".quiet").textContent = finding.files;
  const show = made.querySelector(".show"), mend = made.querySelector(".mend");
  show.hidden = !finding.show;
  show.dataset.kind = finding.kind;
  show.setAttribute("aria-label", "[[Show: {title}]]".replace("{title}", () => finding.title));
  made.querySelector(".pairs").hidden = !finding.pairs.length;
  mend.hidden = !finding.button;
  mend.dataset.mend = finding.kind;
  mend.textContent = finding.button;
  return made;
}

// The viewer shows links; these are on no page.
function linkTo(/** @type {[kept: Side, copy: Side]} */ [kept, copy]) {
  const link = document.createElement("a");
  link.href = kept.url;
  link.append(Object.assign(document.createElement("img"), { alt: kept.name }));
  Object.assign(link.dataset, { file: kept.name, caption: "", text: kept.text, other: copy.url, otherFile: copy.name, otherText: copy.text });
  return link;
}

function chip(/** @type {{ tag: string, count: number }} */ { tag, count }) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "chip";
  made.dataset.tag = tag;
  const number = document.createElement("b");
  number.textContent = String(count);
  made.append(tag, " ", number);
  return made;
}

function draw() {
  const { value } = view;
  if (!value?.findings) return;
  const doctor = element.querySelector(".doctor"), tags = element.querySelector(".tags");
  doctor.hidden = !value.heading;
  doctor.dataset.open = value.serious;
  doctor.querySelector("summary").textContent = value.heading;
  doctor.querySelector("ul").replaceChildren(...value.findings.map(row));
  tags.hidden = !value.tags.length;
  tags.querySelector(".chips").replaceChildren(...value.tags.map(chip));
  drawBuckets(element.querySelector(".sizes"), value.sizes);
  restore();
}

async function filter(/** @type {{ kind?: string, tag?: string }} */ detail) {
  await window.limnerSaved?.(); // what was typed last may change who has the tag
  document.dispatchEvent(new CustomEvent("limner-filter", { detail }));
}

function restore() {
  for (const part of element.querySelectorAll("details")) {
    const key = part.className;
    part.open = opened.has(key) ? opened.get(key) : part.dataset.open === "yes" && innerWidth > 720;
  }
}
element.addEventListener("click", (event) => {
  const part = event.target.closest("details");
  const button = event.target.closest("button");
  if (part && event.target.closest("summary")) opened.set(part.className, !part.open);
  else if (button?.matches(".pairs")) {
    const pairs = view.value?.findings?.flatMap((finding) => finding.pairs) ?? [];
    document.dispatchEvent(new CustomEvent("limner-view", { detail: pairs.map(linkTo) }));
  } else if (button?.dataset.mend) {
    const kind = button.dataset.mend;
    trigger("apply", { kind, names: view.value?.findings?.find((finding) => finding.kind === kind)?.remove });
  }
  else if (button?.dataset.kind) filter({ kind: button.dataset.kind });
  else if (button?.dataset.tag) {
    filter({ tag: button.dataset.tag });
    trigger("select", { tag: button.dataset.tag });
  }
});
// The buckets of a dataset as bars.
function svg(/** @type {keyof SVGElementTagNameMap} */ tag, /** @type {Attributes} */ attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function bars(/** @type {Sizes} */ { bars: counts, title }) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${ROW * counts.length}`, role: "img", "aria-label": title });
  const most = Math.max(...counts.map(({ count }) => count));
  counts.forEach(({ label, count }, row) => {
    chart.append(
      svg("text", { x: 84, y: ROW * row + 14, "text-anchor": "end" }, label),
      svg("rect", { x: 92, y: ROW * row + 3, width: Math.max(2, 190 * count / most), height: ROW - 6, rx: 3 }),
      svg("text", { x: 98 + Math.max(2, 190 * count / most), y: ROW * row + 14 }, String(count)),
    );
  });
  return chart;
}

function drawBuckets(/** @type {HTMLElement} */ part, /** @type {Sizes | null} */ value) {
  part.hidden = !value;
  if (!value) return;
  part.querySelector(".charts").replaceChildren(bars(value));
}
watch("value", draw);
draw();
