// A click on a preview enlarges it, with its step and seed; the arrow keys go through the row.
const dialog = document.createElement("dialog");
dialog.className = "enlarged";
dialog.innerHTML = "<form method='dialog'><button aria-label='[[Close]]'>×</button></form><img alt=''><p></p>";
document.body.append(dialog);
let row = [], place = 0;
function show(number) {
  place = (number + row.length) % row.length;
  const image = row[place].querySelector("img");
  dialog.querySelector("img").src = image.src;
  dialog.querySelector("img").alt = image.alt;
  dialog.querySelector("p").textContent = row[place].dataset.caption;
}
element.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-caption]");
  if (!link) return;
  event.preventDefault();
  row = [...link.closest(".strip").querySelectorAll("a[data-caption]")];
  show(row.indexOf(link));
  dialog.showModal();
});
dialog.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (move) show(place + move);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
