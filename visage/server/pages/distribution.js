// A face's distribution as a curve, and its interval as a bar on the model's scale.

import { digitsOf, fixed, percent, svg, ticks } from "./elements.js";

// Pixels of the screen
const HEIGHT = 200;
const MARGIN = { left: 18, right: 18, top: 30, bottom: 30 };

/** `31.2 years` and `26 to 37`, with the digits that the labels have. */
export function words(face, labels, unit) {
  const digits = digitsOf(labels.step);
  return {
    value: fixed(face.value, digits + 1),
    unit,
    interval: `${fixed(face.low, digits)} to ${fixed(face.high, digits)}`,
  };
}

function scale(labels, from, to) {
  const span = labels.maximum - labels.minimum;
  return (label) => from + ((label - labels.minimum) / span) * (to - from);
}

/** The interval and the value between the smallest and the largest label. */
export function intervalBar(face, labels) {
  const x = scale(labels, 3, 117);
  const low = x(Math.max(face.low, labels.minimum));
  const high = x(Math.min(face.high, labels.maximum));
  return svg(
    "svg",
    { class: "interval-bar", viewBox: "0 0 120 16", "aria-hidden": "true" },
    svg("line", { class: "track", x1: 3, x2: 117, y1: 8, y2: 8 }),
    svg("line", { class: "interval", x1: low, x2: high, y1: 8, y2: 8 }),
    svg("circle", { class: "value", cx: x(face.value), cy: 8, r: 4.5 }),
  );
}

/** The curve of the probabilities, `width` pixels wide, with the interval below it and a line at the
 * value. */
export function curve(face, document, width) {
  const { labels, unit, quantity } = document;
  const probabilities = face.probabilities;
  const x = scale(labels, MARGIN.left, width - MARGIN.right);
  const floor = HEIGHT - MARGIN.bottom;
  const most = Math.max(...probabilities);
  const y = (probability) => floor - (probability / most) * (floor - MARGIN.top);
  const at = (index) => labels.minimum + index * labels.step;
  const points = probabilities.map((each, index) => [x(at(index)), y(each)]);

  const said = words(face, labels, unit);
  const drawing = svg(
    "svg",
    {
      class: "curve",
      viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "img",
      "aria-label":
        `Distribution of ${quantity}: the estimate is ${said.value} ${unit}, ` +
        `the most probable label ${fixed(at(probabilities.indexOf(most)), digitsOf(labels.step))}, ` +
        `the 80 % interval ${said.interval} ${unit}.`,
    },
    ...axis(labels, x, floor, width),
  );

  drawing.append(
    svg("path", { class: "area", d: area(points, floor) }),
    svg("path", {
      class: "area-inside",
      d: area(between(points, x(face.low), x(face.high)), floor),
    }),
    svg("path", { class: "outline", d: path(points) }),
    svg("line", { class: "value-line", x1: x(face.value), x2: x(face.value), y1: 22, y2: floor }),
    note(x(face.value), width, `${said.value} ${unit}`),
  );
  follow(drawing, { points, at, probabilities, unit, labels, width });
  return drawing;
}

function axis(labels, x, floor, width) {
  const parts = [
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor }),
  ];
  const digits = digitsOf(labels.step);
  for (const tick of ticks(labels.minimum, labels.maximum, width / 55)) {
    parts.push(
      svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: floor, y2: floor + 5 }),
      svg(
        "text",
        { class: "tick", x: x(tick), y: floor + 21, "text-anchor": "middle" },
        fixed(tick, Number.isInteger(tick) ? 0 : digits),
      ),
    );
  }
  return parts;
}

function note(x, width, text) {
  const inside = Math.min(Math.max(x, 56), width - 56);
  return svg("text", { class: "note", x: inside, y: 15, "text-anchor": "middle" }, text);
}

function path(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function area(points, floor) {
  if (points.length < 2) return "";
  const last = points[points.length - 1];
  return `${path(points)}L${last[0].toFixed(1)} ${floor}L${points[0][0].toFixed(1)} ${floor}Z`;
}

/** The part of a curve from x `low` to x `high`, its ends interpolated. */
function between(points, low, high) {
  const [first, last] = [points[0][0], points[points.length - 1][0]];
  const ends = [Math.max(low, first), Math.min(high, last)];
  const inner = points.filter(([x]) => x > ends[0] && x < ends[1]);
  return [[ends[0], height(points, ends[0])], ...inner, [ends[1], height(points, ends[1])]];
}

function height(points, x) {
  const next = points.findIndex((point) => point[0] >= x);
  if (next <= 0) return points[Math.max(next, 0)][1];
  const [[x0, y0], [x1, y1]] = [points[next - 1], points[next]];
  return y0 + ((x - x0) / (x1 - x0)) * (y1 - y0);
}

/** Shows the label and its probability under the pointer. */
function follow(drawing, { points, at, probabilities, unit, labels, width }) {
  const dot = svg("circle", { class: "follow-dot", r: 4 });
  const text = svg("text", { class: "follow-text" });
  const group = svg("g", { class: "follow", "aria-hidden": "true" }, dot, text);
  group.style.display = "none";
  drawing.append(group);

  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const nearest = points.reduce(
      (best, point, index) => (Math.abs(point[0] - x) < Math.abs(points[best][0] - x) ? index : best),
      0,
    );
    const [px, py] = points[nearest];
    const onTheLeft = px > width * 0.7;
    dot.setAttribute("cx", px);
    dot.setAttribute("cy", py);
    text.setAttribute("x", px + (onTheLeft ? -10 : 10));
    text.setAttribute("y", Math.max(py - 8, MARGIN.top + 8));
    text.setAttribute("text-anchor", onTheLeft ? "end" : "start");
    text.textContent = `${fixed(at(nearest), digitsOf(labels.step))} ${unit}: ${percent(probabilities[nearest])}`;
    group.style.display = "";
  });
  drawing.addEventListener("pointerleave", () => {
    group.style.display = "none";
  });
}
