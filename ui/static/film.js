// The large previews show the newest step, or an earlier one that was chosen with the slider, its arrow keys, or *Play*.
const EACH = 700; // milliseconds that *Play* shows a step
const slider = element.querySelector("input"), play = element.querySelector(".play");
const all = (/** @type {string} */ selector) => /** @type {HTMLElement[]} */ ([...document.querySelectorAll(selector)]);
const steps = () => all("#previews [data-step]").map(({ dataset }) => dataset.step);
let chosen = /** @type {string | undefined} */ (""), run = "", timer = /** @type {number | undefined} */ (undefined);

function copy(/** @type {Element | null} */ from, /** @type {Element | null} */ to) {
  for (const { name, value } of from?.attributes ?? []) to?.setAttribute(name, value);
}

function show() {
  const listed = steps(), now = document.querySelector("#status [data-run]")?.dataset.run ?? "";
  if (now !== run) chosen = "";
  run = now;
  const place = listed.includes(chosen) ? listed.indexOf(chosen) : listed.length - 1;
  element.hidden = listed.length < 2;
  slider.max = String(listed.length - 1);
  slider.value = String(place);
  slider.setAttribute("aria-valuetext", listed[place] ?? "");
  for (const cell of all("#previews th, #previews td")) cell.classList.toggle("chosen", place > -1 && cell.matches(`:nth-child(${place + 2})`));
  all("#newest figure").forEach((figure, row) => {
    const cells = [...all("#previews tbody tr")[row]?.querySelectorAll("td") ?? []].slice(0, place + 1);
    const link = cells.findLast((cell) => cell.firstElementChild)?.querySelector("a"); // not each prompt has an image of each step
    if (!link) return;
    copy(link, figure.querySelector("a"));
    copy(link.querySelector("img"), figure.querySelector("img"));
    figure.querySelector("figcaption").textContent = link.querySelector("img").alt;
  });
}

function choose(/** @type {number} */ place) {
  const listed = steps();
  chosen = place < listed.length - 1 ? listed[place] : ""; // at the newest, it follows the run
  show();
}

function stop() {
  clearTimeout(timer);
  play.setAttribute("aria-pressed", false);
}

function playFrom(/** @type {number} */ place) {
  choose(place);
  if (slider.value === slider.max) stop();
  else timer = setTimeout(() => playFrom(place + 1), EACH);
}

slider.addEventListener("input", () => {
  stop();
  choose(Number(slider.value));
});
play.addEventListener("click", () => {
  if (play.getAttribute("aria-pressed") === "true") return stop();
  play.setAttribute("aria-pressed", true);
  playFrom(slider.value === slider.max ? 0 : Number(slider.value));
});
new MutationObserver(show).observe(document.querySelector("#previews"), { childList: true });
show();
