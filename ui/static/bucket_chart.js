// The buckets of a dataset as bars, and the sizes of its images as dots on logarithmic scales. Called by overview.js.
const ROW = 20, WIDE = 320, HIGH = 170, EDGE = 26;

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function bars({ bars: counts, title }) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${ROW * counts.length}`, role: "img", "aria-label": title });
  const most = Math.max(...counts.map(({ count }) => count));
  counts.forEach(({ label, count }, row) => {
    chart.append(
      svg("text", { x: 84, y: ROW * row + 14, "text-anchor": "end" }, label),
      svg("rect", { x: 92, y: ROW * row + 3, width: Math.max(2, 190 * count / most), height: ROW - 6, rx: 3 }),
      svg("text", { x: 98 + Math.max(2, 190 * count / most), y: ROW * row + 14 }, count),
    );
  });
  return chart;
}

function dots({ sizes, resolution }) {
  const chart = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": "[[Sizes of the images]]" });
  const sides = sizes.flatMap(({ width, height }) => [width, height]).concat(resolution);
  const [low, high] = [Math.min(...sides) / 1.2, Math.max(...sides) * 1.2].map(Math.log2);
  const place = (side, room) => EDGE + (Math.log2(side) - low) / (high - low) * (room - 2 * EDGE);
  const x = (width) => place(width, WIDE), y = (height) => HIGH - place(height, HIGH);
  const [least, most] = [2 ** low, 2 ** high];
  const area = resolution * resolution, from = Math.max(least, area / most), to = Math.min(most, area / least);
  chart.append(
    svg("path", { class: "axis", d: `M${EDGE} ${EDGE}V${HIGH - EDGE}H${WIDE - EDGE}` }),
    svg("path", { class: "limit", d: `M${x(from)} ${y(area / from)}L${x(to)} ${y(area / to)}` }),
    svg("text", { x: WIDE - EDGE, y: HIGH - 10, "text-anchor": "end" }, "[[width]]"),
    svg("text", { x: EDGE - 12, y: EDGE - 10 }, "[[height]]"),
  );
  for (const { width, height, count } of sizes) {
    const dot = svg("circle", { cx: x(width), cy: y(height), r: Math.min(9, 3 + Math.sqrt(count)) });
    dot.append(svg("title", {}, `${width} x ${height}: ${count}`));
    chart.append(dot);
  }
  return chart;
}

function drawBuckets(part, value) {
  part.hidden = !value;
  if (!value) return;
  part.querySelector(".charts").replaceChildren(bars(value), dots(value));
}
