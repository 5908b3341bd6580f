// Where a name can stand in a plot without hiding a curve.

// On the line at height y from left to right, the end and base of a name of this width; of the
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
  const best = places.reduce((best, place) => (place.covered < best.covered ? place : best));
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
