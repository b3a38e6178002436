// Selection of several cards, and what can be done with them at once. The boxes on the cards are the selection: a click
// on one, with shift from the last one to this, and a click on an image with Ctrl or shift. It is that of one page.
const boxes = () => [...document.querySelectorAll("#captions .pick")];
const picked = () => boxes().filter((pick) => pick.checked);
const nameOf = (/** @type {HTMLElement} */ pick) => pick.closest(".card")?.dataset.name ?? "";
const bar = () => element.querySelector(".selection");
let last = ""; // the name of the card that was clicked last

function show() {
  const number = picked().length;
  bar().hidden = !number;
  bar().querySelector(".count").textContent = "[[{n} selected]]".replace("{n}", () => String(number));
}

function pick(/** @type {HTMLInputElement} */ box, /** @type {boolean} */ toHere) {
  const all = boxes(), from = all.findIndex((other) => nameOf(other) === last), to = all.indexOf(box);
  if (toHere && from >= 0) {
    for (const between of all.slice(Math.min(from, to), Math.max(from, to) + 1)) between.checked = box.checked;
  }
  last = nameOf(box);
  show();
}

document.addEventListener("click", (event) => {
  const card = event.target.closest?.("#captions .shape")?.closest(".card");
  if (event.target.matches?.("#captions .pick")) {
    pick(event.target, event.shiftKey);
  } else if (card && (event.ctrlKey || event.metaKey || event.shiftKey)) {
    event.preventDefault();
    const box = card.querySelector(".pick");
    box.checked = event.shiftKey || !box.checked;
    pick(box, event.shiftKey);
  }
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".every, .none")) {
    for (const box of boxes()) box.checked = button.matches(".every");
    show();
  } else if (button?.dataset.action === "remove") {
    document.dispatchEvent(new CustomEvent("limner-remove", { detail: picked().map(nameOf) }));
  } else if (button) {
    const [tag, other] = /** @type {const} */ ([".tag", ".new"]).map((field) => bar().querySelector(field).value);
    trigger("apply", { action: button.dataset.action, names: picked().map(nameOf), tag, other });
  }
});
// Cards come and go.
new MutationObserver(show).observe(document.querySelector("#captions"), { childList: true, subtree: true });
