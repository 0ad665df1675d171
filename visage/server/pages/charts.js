// Bars, with a second series as bars behind or as a line of steps, and the same as a table.

import { html, svg, ticks } from "./elements.js";

const HEIGHT = 200;
const MARGIN = { left: 44, right: 10, top: 12, bottom: 28 };

/** A chart of `bars` ({label, value, part, line, title}); `part` of a bar is drawn in the colour of
 * what went wrong, `line` is the second series' height. `format` writes the values of the axis,
 * `every` says which bars have their label written, `label` describes the chart. `edges`: the labels
 * are written at the bars' left edges, and one more at the end. */
export function barChart({ bars, width, format, every, label, edges = null }) {
  const inner = width - MARGIN.left - MARGIN.right;
  const floor = HEIGHT - MARGIN.bottom;
  const most = Math.max(...bars.map((bar) => Math.max(bar.value, bar.line ?? 0)), 1e-9);
  const y = (value) => floor - (value / most) * (floor - MARGIN.top);
  const step = inner / bars.length;
  const x = (index) => MARGIN.left + index * step;
  const gap = Math.min(2, step / 5);

  const drawing = svg("svg", {
    class: "chart",
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": label,
  });
  for (const tick of ticks(0, most, 3)) {
    drawing.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, format(tick)),
    );
  }

  bars.forEach((bar, index) => {
    const left = x(index) + gap / 2;
    const group = svg("g", {}, svg("title", {}, bar.title));
    group.append(
      svg("rect", { class: "reach", x: x(index), y: MARGIN.top, width: step, height: floor - MARGIN.top }),
      svg("rect", { class: "bar-value", x: left, y: y(bar.value), width: step - gap, height: floor - y(bar.value) }),
    );
    if (bar.part) {
      const height = floor - y(bar.part);
      group.append(svg("rect", { class: "bar-part", x: left, y: floor - height, width: step - gap, height }));
    }
    drawing.append(group);
    if (index % every === 0) {
      const at = edges === null ? x(index) + step / 2 : x(index);
      drawing.append(svg("text", { class: "tick", x: at, y: floor + 19, "text-anchor": "middle" }, bar.label));
    }
  });
  if (edges !== null && bars.length % every === 0) {
    const last = { class: "tick", x: x(bars.length), y: floor + 19, "text-anchor": "end" };
    drawing.append(svg("text", last, edges));
  }

  if (bars.some((bar) => bar.line !== undefined)) {
    const d = bars
      .map((bar, index) => `${index ? "V" : `M${x(0)} ${floor}V`}${y(bar.line ?? 0)}H${x(index + 1)}`)
      .join("");
    drawing.append(
      svg("path", { class: "bar-line casing", d: `${d}V${floor}` }),
      svg("path", { class: "bar-line", d: `${d}V${floor}` }),
    );
  }
  drawing.append(
    svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor }),
  );
  return drawing;
}

/** What the colours of a chart mean: {className, text} each. */
export function legend(...entries) {
  return html(
    "p",
    { className: "legend small" },
    ...entries.map(({ className, text }) =>
      html("span", {}, html("span", { className: `swatch ${className}` }), text),
    ),
  );
}

/** Rows of texts as a table; `heads` are the columns' names, the first cell names its row. */
export function table(heads, rows, caption) {
  const cells = (row) =>
    row.map((cell, index) => (index === 0 ? html("th", { scope: "row" }, cell) : html("td", {}, cell)));
  return html(
    "div",
    { className: "scroll", tabIndex: 0, attributes: { role: "group", "aria-label": caption } },
    html(
      "table",
      {},
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
      html("tbody", {}, ...rows.map((row) => html("tr", {}, ...cells(row)))),
    ),
  );
}
