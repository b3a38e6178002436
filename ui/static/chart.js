// The loss chart: raw values faint, their moving average bold, several runs over each other. Hovering reads a step, dragging
// enlarges a range, a double click shows all again. How it is shown is kept in the browser.
const STORE = "limner-chart";
const shown = { smoothing: 0.9, log: false, rate: false, ...JSON.parse(localStorage.getItem(STORE) ?? "{}") };
const LEFT = 56, TOP = 10, BOTTOM = 24, HEIGHT = 240;
let range = /** @type {number[] | null} */ (null); // [first, last] step that is enlarged
let dragged = /** @type {number | null} */ (null); // the step where dragging began
/** @type {ReturnType<typeof scaled>} */
let scale; // of the latest drawing

const view = /** @type {View<Chart>} */ (props);
const part = /** @type {Find} */ (element.querySelector.bind(element));
const right = () => (shown.rate ? 56 : 12);
const runsOf = () => (view.value?.runs ?? []).filter((run) => run.points.length > 1);

function make(/** @type {keyof SVGElementTagNameMap} */ name, /** @type {Attributes} */ attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// The exponential moving average, corrected for the bias of its start (Kingma & Ba 2015, section 3).
function smooth(/** @type {number[]} */ values) {
  let average = 0, weight = 1;
  return values.map((value) => {
    average = shown.smoothing * average + (1 - shown.smoothing) * value;
    weight *= shown.smoothing;
    return average / (1 - weight);
  });
}

const short = (/** @type {number} */ value) => (value === 0 ? "0" : Math.abs(value) < 0.01 || value >= 1000 ? value.toExponential(1) : value.toPrecision(3));

function ticks(/** @type {number} */ low, /** @type {number} */ high, /** @type {boolean} */ log) {
  if (log) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const factor of [1, 2, 5]) powers.push(factor * 10 ** power);
    }
    return powers.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) values.push(value);
  return values;
}

function bounds(/** @type {number[]} */ values, /** @type {boolean} */ log) {
  const used = log ? values.filter((value) => value > 0) : values;
  let low = Math.min(...used), high = Math.max(...used);
  if (!Number.isFinite(low)) [low, high] = [0.1, 1];
  if (log) return low < high ? [low * 0.95, high * 1.05] : [low / 2, high * 2];
  const margin = (high - low) * 0.06 || 0.01;
  return [Math.max(0, low - margin), high + margin];
}

function scaled(/** @type {Curve[]} */ runs, /** @type {number} */ width) {
  const all = Math.max(...runs.map((run) => Math.max(run.steps, ...run.points.map(([step]) => step))));
  const [first, last] = range ?? [0, all];
  const inside = runs.flatMap((run) => [...run.points, ...run.held_out])
    .filter(([step]) => step >= first && step <= last).map(([, loss]) => loss);
  const [low, high] = bounds(inside, shown.log);
  const move = shown.log ? Math.log : (/** @type {number} */ value) => value;
  const floor = HEIGHT - BOTTOM, span = width - LEFT - right();
  return {
    first, last, low, high, width, floor,
    x: (/** @type {number} */ step) => LEFT + (span * (step - first)) / (last - first || 1),
    y: (/** @type {number} */ loss) => TOP + ((floor - TOP) * (move(high) - move(Math.max(loss, low)))) / (move(high) - move(low)),
    step: (/** @type {number} */ x) => first + ((x - LEFT) / span) * (last - first),
  };
}

function line(/** @type {number[][]} */ points, /** @type {string} */ kind, /** @type {string} */ color) {
  const text = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  return make("polyline", { class: kind, points: text, style: `stroke: ${color}`, "clip-path": "url(#loss-area)" });
}

function axes(/** @type {SVGSVGElement} */ svg) {
  const { first, last, low, high, width, floor, x, y } = scale;
  const clip = make("clipPath", { id: "loss-area" });
  clip.append(make("rect", { x: LEFT, y: TOP, width: Math.max(0, width - LEFT - right()), height: floor - TOP }));
  svg.append(clip, make("line", { class: "axis", x1: LEFT, x2: width - right(), y1: floor, y2: floor }));
  for (const value of ticks(low, high, shown.log)) {
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - right(), y1: y(value), y2: y(value) }));
    svg.append(make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const value of ticks(first, last, false)) {
    if (Number.isInteger(value)) svg.append(make("text", { x: x(value), y: HEIGHT - 6, "text-anchor": "middle" }, String(value)));
  }
}

function rates(/** @type {SVGSVGElement} */ svg, /** @type {Curve} */ run) {
  const most = Math.max(...run.points.map(([, , rate]) => rate)) || 1;
  const at = (/** @type {number} */ rate) => scale.floor - ((scale.floor - TOP) * rate) / most;
  svg.append(line(run.points.map(([step, , rate]) => [scale.x(step), at(rate)]), "rates", "var(--body-text-color-subdued)"));
  svg.append(make("text", { x: scale.width - 4, y: TOP + 10, "text-anchor": "end" }, short(most)));
}

function draw() {
  const svg = part("svg"), runs = runsOf();
  if (!svg) return;
  part(".loss-tools").hidden = svg.toggleAttribute("hidden", runs.length === 0);
  part(".whole").hidden = !range;
  part(".smoothing").value = String(shown.smoothing);
  part(".log").checked = shown.log;
  part(".rate").checked = shown.rate;
  svg.replaceChildren();
  part(".legend").replaceChildren();
  if (!runs.length) return;
  const width = svg.clientWidth || 720;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("aria-label", view.value?.label ?? "");
  svg.dataset.points = String(runs[0].points.length);
  scale = scaled(runs, width);
  axes(svg);
  if (shown.rate) rates(svg, runs[0]);
  for (const [place, run] of [...runs.entries()].reverse()) drawRun(svg, run, `var(--line-${place})`);
}

function drawRun(/** @type {SVGSVGElement} */ svg, /** @type {Curve} */ run, /** @type {string} */ color) {
  const averages = smooth(run.points.map(([, loss]) => loss));
  svg.append(line(run.points.map(([step, loss]) => [scale.x(step), scale.y(loss)]), "raw", color));
  const bold = run.points.map(([step], place) => [scale.x(step), scale.y(averages[place])]);
  svg.append(line(bold, "smooth", color));
  heldOut(svg, run, color);
  for (const step of run.checkpoints.filter((each) => each >= scale.first && each <= scale.last)) {
    const x = scale.x(step), mark = make("path", { class: "checkpoint", d: `M${x} ${scale.floor - 8}l4 8h-8z`, style: `fill: ${color}` });
    mark.append(make("title", {}, "[[Checkpoint at step {step}]]".replace("{step}", String(step))));
    svg.append(mark);
  }
  const [x, y] = bold[bold.length - 1];
  svg.append(make("circle", { class: "now", cx: x, cy: y, r: 4, style: `fill: ${color}`, "clip-path": "url(#loss-area)" }));
  const entry = document.createElement("li");
  entry.style.setProperty("--line", color);
  entry.textContent = `${run.label}: ${short(averages[averages.length - 1])}`;
  part(".legend").prepend(entry);
}

function heldOut(/** @type {SVGSVGElement} */ svg, /** @type {Curve} */ run, /** @type {string} */ color) {
  if (!run.held_out.length) return;
  const points = run.held_out.map(([step, loss]) => [scale.x(step), scale.y(loss)]);
  svg.append(line(points, "held-out", color));
  const lowest = Math.min(...run.held_out.map(([, loss]) => loss)), best = run.held_out.findIndex(([, loss]) => loss === lowest);
  for (const [place, [cx, cy]] of points.entries()) {
    const r = place === best ? 6 : 2.5; // the lowest is ringed
    svg.append(make("circle", { class: "held-out", cx, cy, r, style: `stroke: ${color}`, "clip-path": "url(#loss-area)" }));
  }
  const entry = document.createElement("li");
  entry.className = "held-out";
  entry.style.setProperty("--line", color);
  entry.textContent = run.held_label;
  part(".legend").prepend(entry);
}

function read(/** @type {PointerEvent} */ event) {
  const svg = part("svg"), run = runsOf()[0];
  if (!svg || !run || !scale) return;
  const wanted = scale.step(event.clientX - svg.getBoundingClientRect().left);
  const averages = smooth(run.points.map(([, loss]) => loss));
  const place = run.points.reduce((best, [step], index) =>
    (Math.abs(step - wanted) < Math.abs(run.points[best][0] - wanted) ? index : best), 0);
  const [step, loss, rate] = run.points[place];
  svg.querySelector(".pointer")?.remove();
  svg.append(make("line", { class: "pointer", x1: scale.x(step), x2: scale.x(step), y1: TOP, y2: scale.floor }));
  part(".reading").textContent = "[[step {step}: loss {loss}, smoothed {average}, learning rate {rate}]]"
    .replace("{step}", String(step)).replace("{loss}", short(loss)).replace("{average}", short(averages[place]))
    .replace("{rate}", short(rate));
  const image = part(".then"), [, address = ""] = run.images.findLast(([made]) => made <= step) ?? [];
  image.hidden = !address;
  if (address && image.getAttribute("src") !== address) image.src = address;
  image.style.left = `${Math.min(Math.max(0, scale.x(step) - 48), scale.width - 96)}px`;
}

element.addEventListener("input", (event) => {
  const input = event.target;
  if (input.matches(".smoothing")) shown.smoothing = Number(input.value);
  else if (input.matches(".log")) shown.log = input.checked;
  else if (input.matches(".rate")) shown.rate = input.checked;
  else return;
  localStorage.setItem(STORE, JSON.stringify(shown));
  draw();
});
element.addEventListener("pointermove", (event) => { if (event.target.closest("svg")) read(event); });
element.addEventListener("pointerleave", () => {
  part(".pointer")?.remove();
  if (part(".reading")) part(".reading").textContent = "";
  if (part(".then")) part(".then").hidden = true;
}, true);
element.addEventListener("pointerdown", (event) => {
  const svg = event.target.closest("svg");
  if (svg && scale) dragged = scale.step(event.clientX - svg.getBoundingClientRect().left);
});
document.addEventListener("pointerup", (event) => {
  const svg = part("svg");
  if (dragged === null || !svg || !scale) return;
  const here = scale.step(event.clientX - svg.getBoundingClientRect().left);
  const [first, last] = [Math.min(dragged, here), Math.max(dragged, here)].map(Math.round);
  dragged = null;
  if (last - first < (scale.last - scale.first) / 50) return;
  range = [Math.max(first, scale.first), Math.min(last, scale.last)];
  draw();
});
function showAll() {
  range = null;
  draw();
}
element.addEventListener("dblclick", (event) => { if (event.target.closest("svg")) showAll(); });
element.addEventListener("click", (event) => { if (event.target.closest(".whole")) showAll(); });
new ResizeObserver(draw).observe(element);
watch("value", draw);
draw();
