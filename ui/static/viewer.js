// The viewer: a click on an image that has a caption shows it large, with what it was made from. The arrow keys go through
// its row, and up and down through the rows of its table; a click on the image shows its pixels one to one. Of an image
// with a size (`data-size`), what training crops (`data-crop`, shares of its width and height) is dark.
const dialog = document.createElement("dialog");
dialog.className = "viewer";
dialog.innerHTML = `<header><p></p><button type="button" class="act nearest">[[Nearest training image]]</button>
  <a class="act save" download>[[Save]]</a><button type="button" class="act close" aria-label="[[Close]]">×</button></header>
  <div class="stage"><button type="button" class="step before" aria-label="[[Previous image]]">‹</button>
  <figure><span class="sheet"><img alt=""><svg class="over" aria-hidden="true"><path fill-rule="evenodd"></path></svg></span><figcaption><span></span>
  <button type="button" class="act discard">[[Remove this one]]</button></figcaption></figure>
  <figure class="other" hidden><span class="sheet"><img alt=""></span><figcaption><span></span>
  <button type="button" class="act discard">[[Remove this one]]</button></figcaption></figure>
  <button type="button" class="step after" aria-label="[[Next image]]">›</button></div>`;
document.body.append(dialog);
const part = /** @type {Find} */ (dialog.querySelector.bind(dialog));
let rows = /** @type {HTMLAnchorElement[][]} */ ([]), row = 0, place = 0; // the links that can be shown, and the one that is
let compares = false;
// Other scripts add tools for the image that is shown, and may change its link.
const follow = new MutationObserver(() => { if (!dialog.matches(".painting, .cropping")) show(); });

const linksOf = (/** @type {HTMLElement} */ container) => [...container.querySelectorAll("a[data-caption]")];

function show() {
  const link = rows[row][place], image = part("figure img");
  const url = link.getAttribute("href") ?? "";
  image.src = url;
  image.alt = link.querySelector("img").alt;
  image.classList.toggle("pixels", link.querySelector("img").matches(".pixels"));
  dialog.classList.remove("actual");
  part("p").textContent = link.dataset.caption ?? "";
  part(".save").href = url;
  part(".save").download = link.dataset.file ?? "image.png";
  part(".nearest").hidden = !link.dataset.nearest;
  part(".nearest").setAttribute("aria-pressed", compares);
  const other = link.dataset.other ?? (compares ? link.dataset.nearest : undefined);
  part(".other").hidden = !other;
  if (other) part(".other img").src = other;
  part(".other img").alt = link.dataset.otherFile ?? "[[Nearest training image]]";
  showPair(link.dataset);
  showCrop(link);
  follow.disconnect();
  follow.observe(link, { attributes: true });
  dialog.dispatchEvent(new CustomEvent("limner-shown", { bubbles: true, detail: link }));
  for (const button of dialog.querySelectorAll(".step")) button.hidden = rows[row].length < 2;
}

// Of a pair of images that are nearly the same, either can be removed.
function showPair(/** @type {DOMStringMap} */ { file, text, otherFile, otherText }) {
  dialog.querySelectorAll("figcaption").forEach((caption, side) => {
    const name = [file, otherFile][side], discard = caption.querySelector(".discard");
    caption.hidden = !otherFile;
    caption.querySelector("span").textContent = [text, otherText][side] ?? "";
    discard.dataset.name = name ?? "";
    discard.setAttribute("aria-label", "[[Remove {name}]]".replace("{name}", () => name ?? ""));
  });
}

function discard(/** @type {string} */ name) {
  document.dispatchEvent(new CustomEvent("limner-remove", { detail: [name] }));
  rows = [rows[row].filter(({ dataset }) => name !== dataset.file && name !== dataset.otherFile)];
  row = 0;
  place = Math.min(place, rows[0].length - 1);
  if (rows[0].length) show();
  else dialog.close();
}

function showCrop(/** @type {HTMLAnchorElement} */ link) {
  const [width, height] = (link.dataset.size ?? "0,0").split(",").map(Number);
  const [across, down] = (link.dataset.crop ?? "0,0").split(",").map((share, side) => Math.round(Number(share) * [width, height][side] / 2));
  part(".over").setAttribute("viewBox", `0 0 ${width} ${height}`);
  part(".over path").setAttribute("d", Math.max(across, down) < 0.01 * Math.max(width, height) ? ""
    : `M0 0H${width}V${height}H0Z M${across} ${down}H${width - across}V${height - down}H${across}Z`);
}

function move(/** @type {number} */ across, /** @type {number} */ down) {
  row = (row + down + rows.length) % rows.length;
  place = Math.min(place, rows[row].length - 1);
  place = (place + across + rows[row].length) % rows[row].length;
  show();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-caption]");
  if (!link || (link.closest(".cards") && (event.ctrlKey || event.metaKey || event.shiftKey))) return; // see selection.js
  event.preventDefault();
  const table = link.closest("table");
  rows = table ? [...table.querySelectorAll("tbody tr")].map(linksOf) : [linksOf(link.closest(".strip, .pictures, .cards, .newest") ?? link)];
  row = rows.findIndex((links) => links.includes(link));
  place = rows[row].indexOf(link);
  show();
  dialog.showModal();
});
document.addEventListener("limner-show-again", show);
document.addEventListener("limner-view", ({ detail }) => {
  rows = [detail];
  row = place = 0;
  show();
  dialog.showModal();
});
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || dialog.matches(".painting, .cropping")) return;
  const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  if (!across && !down) return;
  event.preventDefault();
  move(across, down);
});
// A mask that is being painted is left by its own buttons, not by Escape or a stroke that ends beside the image.
dialog.addEventListener("cancel", (event) => { if (dialog.matches(".painting")) event.preventDefault(); });
dialog.addEventListener("click", (event) => {
  if (event.target === dialog ? !dialog.matches(".painting") : event.target.closest(".close")) dialog.close();
  else if (event.target.closest(".discard")) discard(event.target.dataset.name);
  else if (event.target.closest(".before")) move(-1, 0);
  else if (event.target.closest(".after")) move(1, 0);
  else if (event.target.closest(".nearest")) {
    compares = !compares;
    show();
  } else if (event.target.closest("figure img")) dialog.classList.toggle("actual");
});
