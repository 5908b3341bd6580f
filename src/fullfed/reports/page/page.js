// The page's state and what changes it: controls, legend, pointing, size.

const { metrics, data } = JSON.parse(document.getElementById("data").textContent);
const WAYS = { both: "up + down", up: "up", down: "down" };
const view = { metric: metrics[0], way: "both", hidden: new Set() };
const plots = Object.keys(AXES).map((kind) => new Plot(kind));
const pointings = plots.map((plot) => new Pointing(plot, look));

function prepare() {
  view.curves = data.methods
    .map((method, index) => ({ ...curveOf(method, view.metric.name), index }))
    .filter((curve) => !view.hidden.has(curve.label));
  view.references = references();
  view.range = range();
}

function references() {
  const { name, heading } = view.metric;
  const run = data.methods.flatMap((method) => method.runs).find((run) => name in run.base);
  const lines = run ? [{ value: run.base[name], text: `base model ${run.base[name].toPrecision(3)}` }] : [];
  const { target } = data;
  if (target?.metric === name) {
    lines.push({ value: target.value, text: `target: ${heading} ${target.value.toPrecision(3)}` });
  }
  return lines;
}

// All values, but for those much worse than the base model, which would flatten the rest.
function range() {
  const points = view.curves.flatMap((curve) => [curve.points, ...curve.failures].flat());
  const values = points.flatMap((p) => [p.value - (p.spread ?? 0), p.value + (p.spread ?? 0)]);
  const marks = view.references.map((reference) => reference.value);
  const low = Math.min(...values, ...marks);
  const high = Math.max(...values, ...marks);
  if (!Number.isFinite(low)) return [0, 1];
  const base = Math.max(...marks);
  const bearable = base + Math.max(0.3 * (base - low), 0.1 * base);
  const top = view.metric.more_is_better || marks.length === 0 ? high : Math.min(high, bearable);
  const room = (top - low) * 0.05 || 0.05;
  return [view.metric.more_is_better ? Math.max(low - room, 0) : low - room, top + room];
}

function draw() {
  if (plots[0].svg.clientWidth === 0) return; // not laid out yet; showCurves draws again once it is
  prepare();
  for (const plot of plots) plot.draw(view);
  look(null, null);
}

// The same method and round show in all plots, their values in the one that is pointed at.
function look(owner, here) {
  for (const pointing of pointings) pointing.show(here, pointing.plot === owner, describe);
}

function describe(curve, at) {
  const { heading, unit } = view.metric;
  const deviation = at.spread === null ? "" : ` ± ${at.spread.toFixed(3)}`;
  const rows = [
    `${heading} ${at.value.toFixed(3)}${deviation} (${unit})`,
    `${quantity(at.up, BYTES)} up, ${quantity(at.down, BYTES)} down`,
    `after ${quantity(at.seconds, SECONDS)}`,
  ];
  const name = html("strong", {}, `${curve.label}, round ${at.round}`);
  return [name, ...rows.map((row) => html("div", {}, row))];
}

function emphasize(label) {
  for (const group of document.querySelectorAll(".series")) {
    group.classList.toggle("dim", label !== null && group.dataset.method !== label);
  }
}

function emphasizes(element, label) {
  element.addEventListener("pointerenter", () => emphasize(label));
  element.addEventListener("pointerleave", () => emphasize(null));
}

// One of several, as radio buttons.
function choice(title, name, options, chosen) {
  const labels = Object.entries(options).map(([value, text], n) => {
    const input = html("input", { type: "radio", name, value });
    input.checked = n === 0;
    input.addEventListener("change", () => {
      chosen(value);
      draw();
    });
    return html("label", {}, input, text);
  });
  const group = html("span", { class: "options" }, ...labels);
  return html("fieldset", { class: "choice" }, html("legend", {}, title), group);
}

function controls() {
  const made = [choice("Bytes", "way", WAYS, (way) => (view.way = way))];
  if (metrics.length > 1) {
    const names = Object.fromEntries(metrics.map((metric) => [metric.name, metric.heading]));
    const find = (name) => metrics.find((metric) => metric.name === name);
    made.unshift(choice("Measure", "metric", names, (name) => (view.metric = find(name))));
  }
  document.getElementById("controls").append(...made);
}

function legend() {
  const labels = data.methods.map(({ label }, index) => {
    const input = html("input", { type: "checkbox" });
    input.checked = true;
    input.addEventListener("change", () => {
      view.hidden[input.checked ? "delete" : "add"](label);
      draw();
    });
    const element = html("label", {}, input, swatch(index), label);
    emphasizes(element, label);
    return element;
  });
  document.getElementById("legend").append(...labels);
}

// The mark of a method's curve beside its row.
function markRows(table) {
  [...table.tBodies[0].rows].forEach((row, index) => {
    row.cells[0].prepend(swatch(index));
    emphasizes(row, data.methods[index].label);
  });
}

function showCurves(element) {
  controls();
  legend();
  element.append(...plots.map((plot) => plot.figure));
  draw();
  new ResizeObserver(() => plots.some((plot) => plot.resized()) && draw()).observe(element);
}

document.querySelectorAll("table.marks").forEach(markRows);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("#plots").forEach(showCurves);
