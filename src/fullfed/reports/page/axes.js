// What the plots have along the bottom.

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
