// Elements of the page, and the marks by which a method is known wherever it appears.

const SVG = "http://www.w3.org/2000/svg";
const TONES = 8;
const SHAPES = [
  "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0z",
  "M-3.3,-3.3h6.6v6.6h-6.6z",
  "M0,-4.4l4.2,7.4h-8.4z",
  "M0,-4.8l4.8,4.8l-4.8,4.8l-4.8,-4.8z",
  "M0,4.4l4.2,-7.4h-8.4z",
  "M-1.4,-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3z",
  "M-1.8,-4.8h3.6v9.6h-3.6z",
];

function shape(index) {
  return SHAPES[index % SHAPES.length];
}

function tone(index) {
  return `s${index % TONES}`;
}

function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function swatch(index) {
  return svg(
    "svg",
    { class: `swatch ${tone(index)}`, width: 22, height: 12, viewBox: "-11 -6 22 12", "aria-hidden": "true" },
    svg("line", { x1: -11, x2: 11 }),
    svg("path", { d: shape(index) }),
  );
}

// "M x,y L x,y ...", of pixel coordinates.
function line(points) {
  return points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
}
