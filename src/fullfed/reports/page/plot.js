// A plot of a metric against rounds, bytes or seconds.

const MARGIN = { top: 24, right: 24, bottom: 42, left: 46 };

class Plot {
  constructor(kind) {
    this.axis = AXES[kind];
    this.caption = html("figcaption");
    this.svg = svg("svg", { tabindex: 0, role: "img" });
    this.outside = html("p", { class: "clipped-note" });
    this.figure = html("figure", { "data-axis": kind }, this.caption, this.svg, this.outside);
  }

  // view: { metric, way, curves, references, range }; see page.js.
  draw(view) {
    this.view = view;
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    this.curves = view.curves.map((curve) => this.visible(curve));
    this.scale();
    const title = `${view.metric.heading} against ${this.axis.title}`;
    this.caption.replaceChildren(title, html("span", {}, ` · ${view.metric.unit}`));
    this.svg.setAttribute("aria-label", `${title}. Arrow keys walk along the curves.`);
    const [lines, names] = this.references();
    this.svg.replaceChildren(this.grid(), lines, ...this.series(), names, this.frame());
    this.outside.textContent = this.outsideText();
  }

  resized() {
    return this.width !== this.svg.clientWidth || this.height !== this.svg.clientHeight;
  }

  // A curve as this plot can show it: a log axis has no zero, so the base model is not on it.
  visible(curve) {
    const shown = (points) =>
      points
        .map((point) => ({ ...point, x: this.axis.x(point, this.view.way) }))
        .filter((point) => !this.axis.log || point.x > 0);
    return { ...curve, points: shown(curve.points), failures: curve.failures.map(shown) };
  }

  scale() {
    const { log } = this.axis;
    const xs = this.curves.flatMap((c) => [c.points, ...c.failures].flat()).map((p) => p.x);
    const [least, most] = xs.length ? [Math.min(...xs), Math.max(...xs)] : [1, 10];
    this.low = log ? least / 1.25 : 0;
    this.high = log ? most * 1.25 : most || 1;
    [this.bottom, this.top] = this.view.range;
    const [from, to] = [MARGIN.left, this.width - MARGIN.right];
    const along = log
      ? (x) => Math.log(x / this.low) / Math.log(this.high / this.low)
      : (x) => x / this.high;
    this.x = (x) => from + along(x) * (to - from);
    const [floor, ceiling] = [this.height - MARGIN.bottom, MARGIN.top];
    this.y = (y) => floor + ((y - this.bottom) / (this.top - this.bottom)) * (ceiling - floor);
  }

  pixel = (point) => [this.x(point.x), this.y(point.value)];
  pixels = (points) => points.map(this.pixel);

  grid() {
    const group = svg("g", { class: "grid" });
    const [left, right] = [MARGIN.left, this.width - MARGIN.right];
    const floor = this.height - MARGIN.bottom;
    const { ticks, digits } = linearTicks(this.bottom, this.top, this.height / 55);
    for (const tick of ticks) {
      const y = this.y(tick);
      group.append(
        svg("line", { x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, tick.toFixed(digits)),
      );
    }
    for (const [tick, text] of this.axis.ticks(this.low, this.high, (right - left) / 75)) {
      const x = this.x(tick);
      group.append(
        svg("line", { x1: x, x2: x, y1: floor, y2: floor + 5 }),
        svg("text", { x, y: floor + 18, "text-anchor": "middle" }, text),
      );
    }
    const label = this.axis.label(this.view.way);
    const middle = (left + right) / 2;
    group.append(svg("text", { x: middle, y: this.height - 5, "text-anchor": "middle" }, label));
    return group;
  }

  // The base model and the target, as lines across under the curves and names above them.
  references() {
    const [lines, names] = [svg("g", { class: "reference" }), svg("g", { class: "reference" })];
    const [left, right] = [MARGIN.left, this.width - MARGIN.right];
    for (const { value, text } of this.view.references) {
      const y = this.y(value);
      if (value < this.bottom || value > this.top) continue;
      lines.append(svg("line", { x1: left, x2: right, y1: y, y2: y }));
      const drawn = this.curves.flatMap((c) => [c.points, ...c.failures].map(this.pixels));
      const place = quietPlace(drawn, left, right, y, 6.5 * text.length);
      names.append(svg("text", { ...place, "text-anchor": "end" }, text));
    }
    return [lines, names];
  }

  series() {
    const clip = `clip-${this.axis.title}`;
    const box = {
      x: MARGIN.left - 6,
      y: MARGIN.top - 6,
      width: this.width - MARGIN.left - MARGIN.right + 12,
      height: this.height - MARGIN.top - MARGIN.bottom + 6,
    };
    const path = svg("clipPath", { id: clip }, svg("rect", box));
    const groups = this.curves.map((curve) =>
      svg(
        "g",
        { class: `series ${tone(curve.index)}`, "data-method": curve.label },
        ...this.band(curve),
        ...curve.failures.flatMap((points) => this.failed(points)),
        ...this.mean(curve),
      ),
    );
    return [svg("defs", {}, path), svg("g", { "clip-path": `url(#${clip})` }, ...groups)];
  }

  band({ points }) {
    const banded = points.filter((point) => point.spread !== null);
    if (banded.length < 2) return [];
    const edge = (sign) => banded.map((p) => [this.x(p.x), this.y(p.value + sign * p.spread)]);
    return [svg("path", { class: "band", d: `${line([...edge(1), ...edge(-1).reverse()])}Z` })];
  }

  // A run that failed, with a cross where it was measured last.
  failed(points) {
    if (points.length === 0) return [];
    const [x, y] = this.pixel(points.at(-1));
    return [
      svg("path", { class: "failed", d: line(this.pixels(points)) }),
      svg("path", { class: "end", d: "M-4,-4L4,4M-4,4L4,-4", transform: `translate(${x},${y})` }),
    ];
  }

  // The line, and marks on at most some fourteen of its points, the last one among them.
  mean({ points, index }) {
    if (points.length === 0) return [];
    const every = Math.ceil(points.length / 14);
    const marked = points.filter((_, n) => (points.length - 1 - n) % every === 0);
    return [
      svg("path", { class: "mean", d: line(this.pixels(points)) }),
      ...this.pixels(marked).map(([x, y]) =>
        svg("path", { class: "marker", d: shape(index), transform: `translate(${x},${y})` }),
      ),
    ];
  }

  frame() {
    const [left, right] = [MARGIN.left, this.width - MARGIN.right];
    const floor = this.height - MARGIN.bottom;
    return svg("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor });
  }

  // Worse than the range shown is drawn outside; say how far it goes.
  outsideText() {
    const names = this.curves
      .map((c) => [c.label, Math.max(...[c.points, ...c.failures].flat().map((p) => p.value))])
      .filter(([, highest]) => highest > this.top)
      .map(([name, highest]) => `${name} (up to ${highest.toPrecision(4)})`);
    return names.length ? `Above the plot: ${names.join(", ")}.` : "";
  }
}

// Where a name can stand without hiding a curve: on the line at height y from left to right, the end and base of a name of this width; of the
// places above and below the line, the rightmost that covers the least of the polylines.
function quietPlace(polylines, left, right, y, width) {
  const dots = polylines.flatMap(dotted);
  const places = [];
  for (const base of [y - 5, y + 15]) {
    for (let end = right; end - width >= left; end -= 12) {
      const covers = ([px, py]) => px > end - width - 4 && px < end + 4 && py > base - 14 && py < base + 5;
      places.push({ x: end, y: base, covered: dots.filter(covers).length });
    }
  }
  // In a plot narrower than the name there is no such place; it goes to the right end.
  const narrow = { x: right, y: y - 5, covered: Infinity };
  const best = places.reduce((best, place) => (place.covered < best.covered ? place : best), narrow);
  return { x: best.x, y: best.y };
}

// A polyline as dots at most 4 pixels apart.
function dotted(points) {
  return points.flatMap(([x, y], n) => {
    const [x0, y0] = points[Math.max(n - 1, 0)];
    const steps = Math.ceil(Math.hypot(x - x0, y - y0) / 4) + 1;
    return Array.from({ length: steps }, (_, k) => {
      const share = (k + 1) / steps;
      return [x0 + (x - x0) * share, y0 + (y - y0) * share];
    });
  });
}
