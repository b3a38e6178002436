// Problems and tags. What the user opened or closed stays so when the value changes. Captions are inserted as text:
// overview.html contains no values, as Gradio would run a value in a template as a program.
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
  element.querySelector(".sizes").hidden = !value.sizes.length;
  element.querySelector(".bars").replaceChildren(...value.sizes.map(bucket));
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
// The buckets of a dataset, each with a bar.
function bucket(/** @type {Bucket} */ { label, count }, /** @type {number} */ _place, /** @type {Bucket[]} */ [largest]) {
  const made = document.createElement("li"), bar = document.createElement("meter");
  bar.setAttribute("max", largest.count);
  bar.setAttribute("value", count);
  made.append(label, bar, String(count));
  return made;
}
watch("value", draw);
draw();
