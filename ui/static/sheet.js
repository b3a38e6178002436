// The slider that uncovers an image, and the button that saves a table of images with its labels as one image.
const NARROW = 720; // pixels up to which the image stands above the form
const EDGE = 12, LABEL = 150, LINE = 22, SIDE = 512;

// Images are waited for from the click on, under the number of their sheet, although the server knows of it later.
const result = element.closest("#result");
let sheet = 0, waiting = 0;
const wait = (/** @type {number} */ more) => {
  waiting += more;
  result?.setAttribute("aria-busy", waiting > 0);
};
window.limnerSheet = {
  ask() {
    wait(1);
    return ++sheet;
  },
  end: () => wait(-1),
  latest: () => sheet,
};

element.addEventListener("input", (event) => {
  const frame = event.target.closest(".uncover");
  if (frame && event.target.matches("input")) frame.style.setProperty("--cut", event.target.value + "%");
});

document.addEventListener("click", ({ target }) => {
  if (innerWidth <= NARROW && target.closest("#make")) element.closest("#result")?.scrollIntoView();
});

function wrapped(/** @type {CanvasRenderingContext2D} */ pen, /** @type {string} */ text, /** @type {number} */ width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (pen.measureText(longer).width <= width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.filter(Boolean);
}

function sheetOf(/** @type {HTMLElement} */ table) {
  const rows = [...table.querySelectorAll("tbody tr")], heads = [...table.querySelectorAll("thead th")].slice(1);
  const images = rows.map((row) => [...row.querySelectorAll("img")]);
  const first = images[0][0], scale = Math.max(1, Math.min(4, Math.floor(SIDE / first.naturalWidth)));
  const width = first.naturalWidth * scale, height = first.naturalHeight * scale;
  const sheet = document.createElement("canvas");
  const pen = /** @type {CanvasRenderingContext2D} */ (sheet.getContext("2d"));
  sheet.width = LABEL + heads.length * (width + EDGE) + EDGE;
  sheet.height = LINE * 2 + rows.length * (height + EDGE) + EDGE;
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, sheet.width, sheet.height);
  pen.fillStyle = "#0f172a";
  pen.font = "15px system-ui, sans-serif";
  pen.imageSmoothingEnabled = scale === 1;
  heads.forEach((head, column) => pen.fillText(head.textContent, LABEL + column * (width + EDGE) + 4, LINE * 1.4));
  rows.forEach((row, place) => {
    const top = LINE * 2 + place * (height + EDGE);
    const words = wrapped(pen, row.querySelector("th").textContent, LABEL - 2 * EDGE);
    words.forEach((line, number) => pen.fillText(line, EDGE, top + LINE * (number + 1), LABEL - 2 * EDGE));
    images[place].forEach((image, column) => pen.drawImage(image, LABEL + column * (width + EDGE), top, width, height));
  });
  return sheet;
}

element.addEventListener("click", (event) => {
  if (!event.target.closest(".save-sheet")) return;
  sheetOf(element.querySelector("table")).toBlob((blob) => {
    if (!blob) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "table.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
});
