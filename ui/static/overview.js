// Problems and tags. What the user opened or closed stays so when the value changes. Captions are inserted as text:
// overview.html contains no values, as Gradio would run a value in a template as a program.
const opened = new Map();

function row(finding) {
  const made = element.querySelector("template").content.firstElementChild.cloneNode(true);
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
function linkTo([kept, copy]) {
  const link = document.createElement("a");
  link.href = kept.url;
  link.append(Object.assign(document.createElement("img"), { alt: kept.name }));
  Object.assign(link.dataset, { file: kept.name, caption: "", text: kept.text, other: copy.url, otherFile: copy.name, otherText: copy.text });
  return link;
}

function chip({ tag, count }) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "chip";
  made.dataset.tag = tag;
  const number = document.createElement("b");
  number.textContent = count;
  made.append(tag, " ", number);
  return made;
}

function draw() {
  const value = props.value;
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

function restore() {
  for (const part of element.querySelectorAll("details")) {
    const key = part.className;
    part.open = opened.has(key) ? opened.get(key) : part.dataset.open === "yes" && innerWidth > 720;
  }
}
element.addEventListener("click", (event) => {
  const summary = event.target.closest("summary");
  const button = event.target.closest("button");
  if (summary) opened.set(summary.parentElement.className, !summary.parentElement.open);
  else if (button?.matches(".pairs")) {
    const { pairs } = props.value.findings.find((finding) => finding.pairs.length);
    document.dispatchEvent(new CustomEvent("limner-view", { detail: pairs.map(linkTo) }));
  } else if (button?.dataset.mend) trigger("apply", { kind: button.dataset.mend });
  else if (button?.dataset.kind) trigger("select", { kind: button.dataset.kind });
  else if (button?.dataset.tag) trigger("select", { tag: button.dataset.tag });
});
watch("value", draw);
draw();
