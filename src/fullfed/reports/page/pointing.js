// Reading a curve's values, by pointer or keyboard: which point, and the tip that describes it.

const REACH = 48; // pixels
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class Pointing {
  // look(plot, {label, round} or null): is told what is looked at, and in which plot.
  constructor(plot, look) {
    this.plot = plot;
    this.look = look;
    this.here = null;
    this.tip = html("div", { class: "tip", role: "status" });
    plot.figure.append(this.tip);
    for (const kind of ["pointermove", "pointerdown"]) {
      plot.svg.addEventListener(kind, (event) => this.nearest(event));
    }
    for (const kind of ["pointerleave", "focusout"]) {
      plot.svg.addEventListener(kind, () => look(plot, null));
    }
    plot.svg.addEventListener("keydown", (event) => this.step(event));
  }

  nearest(event) {
    const box = this.plot.svg.getBoundingClientRect();
    let [best, least] = [null, REACH];
    for (const curve of this.plot.curves) {
      for (const point of curve.points) {
        const [x, y] = this.plot.pixel(point);
        const distance = Math.hypot(box.left + x - event.clientX, box.top + y - event.clientY);
        if (distance < least) [best, least] = [{ label: curve.label, round: point.round }, distance];
      }
    }
    this.look(this.plot, best);
  }

  // Left and right walk along a curve from its end, up and down change the curve.
  step(event) {
    const curves = this.plot.curves.filter((curve) => curve.points.length > 0);
    if (!(event.key in MOVES) || curves.length === 0) return;
    event.preventDefault();
    const [along, across] = MOVES[event.key];
    const row = curves.findIndex((curve) => curve.label === this.here?.label);
    const { label, points } = curves[row < 0 ? 0 : (row + across + curves.length) % curves.length];
    const at = row < 0 ? -1 : points.findIndex((point) => point.round >= this.here.round);
    const next = at < 0 ? points.length - 1 : Math.min(Math.max(at + along, 0), points.length - 1);
    this.look(this.plot, { label, round: points[next].round });
  }

  // Ring the point that is looked at in any of the plots; where it is this one, describe it too.
  show(here, owned, describe) {
    this.here = here;
    this.plot.svg.querySelector(".here")?.remove();
    this.tip.replaceChildren();
    const curve = this.plot.curves.find((curve) => curve.label === here?.label);
    const point = curve?.points.find((point) => point.round === here.round);
    if (!point) return;
    const [x, y] = this.plot.pixel(point);
    this.plot.svg.append(svg("circle", { class: `here ${tone(curve.index)}`, cx: x, cy: y, r: 8 }));
    if (!owned) return;
    this.tip.className = `tip ${tone(curve.index)}`;
    this.tip.append(...describe(curve, point));
    this.place(x, y);
  }

  // Beside the point, above it, within the figure.
  place(x, y) {
    const { offsetWidth, offsetHeight } = this.tip;
    const { figure, svg } = this.plot;
    const above = svg.getBoundingClientRect().top - figure.getBoundingClientRect().top;
    const right = x + 16 + offsetWidth < this.plot.width;
    const left = right ? x + 16 : Math.max(x - 16 - offsetWidth, 0);
    const top = Math.max(above + y - offsetHeight - 12, 0);
    Object.assign(this.tip.style, { left: `${left}px`, top: `${top}px` });
  }
}
