// Numbers as people read them, each with its unit (as fullfed/units.py has them), and the axes
// that they stand on.

const BYTES = [["B", 1], ["KiB", 2 ** 10], ["MiB", 2 ** 20], ["GiB", 2 ** 30], ["TiB", 2 ** 40]];
const SECONDS = [["ms", 1e-3], ["s", 1], ["min", 60], ["h", 3600]];

function unitFor(value, units) {
  return units.findLast(([, size]) => value >= size) ?? units[0];
}

function quantity(value, units) {
  const [name, size] = unitFor(value, units);
  const digits = value > 0 ? Math.max(2 - Math.floor(Math.log10(value / size)), 0) : 0;
  return `${(value / size).toFixed(digits)} ${name}`;
}

// At most about `count` round values in [low, high], and the digits that tell them apart.
function linearTicks(low, high, count, smallest = 0) {
  const rough = Math.max((high - low) / count, smallest, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(n * step);
  return { ticks, digits };
}

// Powers of two in [low, high], at most about `count`; linear ticks where there are too few.
function binaryTicks(low, high, count) {
  const [first, last] = [Math.ceil(Math.log2(low)), Math.floor(Math.log2(high))];
  const step = [1, 2, 3, 4, 5, 10, 20].find((s) => (last - first) / s <= count) ?? 40;
  const ticks = [];
  for (let n = Math.ceil(first / step) * step; n <= last; n += step) ticks.push(2 ** n);
  return ticks.length > 1 ? ticks : linearTicks(low, high, count).ticks;
}

// What a plot can have along the bottom.
const AXES = {
  rounds: {
    title: "rounds",
    x: (point) => point.round,
    ticks: (low, high, count) => linearTicks(low, high, count, 1).ticks.map((t) => [t, `${t}`]),
    label: () => "rounds",
  },
  bytes: {
    title: "bytes",
    log: true,
    x: (point, way) => (way === "both" ? point.up + point.down : point[way]),
    ticks: (low, high, count) => binaryTicks(low, high, count).map((t) => [t, shortBytes(t)]),
    label: (way) => `bytes ${way === "both" ? "up and down" : way} so far, all clients (log scale)`,
  },
  seconds: {
    title: "time",
    x: (point) => point.seconds,
    ticks: secondTicks,
    label: () => "time so far: training, encoding, aggregation",
  },
};

function shortBytes(value) {
  const [name, size] = unitFor(value, BYTES);
  return `${Number((value / size).toPrecision(3))} ${name}`;
}

function secondTicks(low, high, count) {
  const [name, size] = unitFor(high / 2, SECONDS);
  const { ticks, digits } = linearTicks(low / size, high / size, count);
  return ticks.map((t) => [t * size, `${t.toFixed(digits)} ${name}`]);
}
