/** A line of values over the last two minutes, as SVG. */

const POINTS = 120; // one per second
const HEIGHT = 29;

export class Chart {
  #svg;
  #values = [];

  /** @param {SVGElement} svg with a polyline; 120 units wide and 30 high */
  constructor(svg) {
    this.#svg = svg;
  }

  /** The highest shown value. */
  get peak() {
    return Math.max(0, ...this.#values);
  }

  /** Add the value of one more second, and draw. */
  add(value) {
    this.#values.push(value);
    if (this.#values.length > POINTS + 1) this.#values.shift();
    const first = POINTS - this.#values.length + 1;
    const top = this.peak || 1;
    const points = this.#values.map((y, i) => `${first + i},${(HEIGHT - (y / top) * (HEIGHT - 2) + 0.5).toFixed(2)}`);
    this.#svg.querySelector("polyline").setAttribute("points", points.join(" "));
  }
}
