// The model's card: what it predicts, how well, its limits and its terms (GET /model).

import { fixed, html, percent } from "./elements.js";

/** A document of GET /model -> the section's contents. */
export function modelCard(model) {
  const version = model.version === null ? "" : `, version ${model.version}`;
  const labels = `${fixed(model.labels.minimum)} to ${fixed(model.labels.maximum)} ${model.unit}`;
  const facts = [
    ["Model", `${model.name}${version}`],
    ["Predicts", `${model.quantity}, ${labels}`],
    ...errors(model),
    ["Network", `${model.config.network.name}, ${fixed(model.config.weights.num_parameters)} parameters`],
  ];
  return html(
    "div",
    { className: "model-card" },
    html(
      "dl",
      { className: "facts wide" },
      ...facts.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))),
    ),
    html("div", { className: "prose" }, ...chapters(markdown(withoutTitle(model.card)))),
  );
}

/** The error and the coverage of the test faces, where they were published. */
function errors({ metrics, unit }) {
  const test = metrics?.test ?? {};
  const rows = [];
  if (test.mae?.value !== undefined) {
    rows.push(["Mean absolute error", `${fixed(test.mae.value, 2)} ${unit}`]);
  }
  if (test.coverage_80?.value !== undefined) {
    rows.push(["Labels inside the interval", percent(test.coverage_80.value)]);
  }
  if (test.num_faces) rows.push(["Test faces", fixed(test.num_faces)]);
  return rows;
}

/** Elements -> a section for each heading and what follows it. */
function chapters(elements) {
  const sections = [html("section", {})];
  for (const each of elements) {
    if (each.tagName === "H3") sections.push(html("section", {}));
    sections[sections.length - 1].append(each);
  }
  return sections.filter((section) => section.children.length > 0);
}

function withoutTitle(text) {
  return text.replace(/^# .*\n/, "");
}

/** The few forms of Markdown that cards use (headings, lists, tables, paragraphs, `code`) as
 * elements. */
export function markdown(text) {
  const blocks = text.trim().split(/\n\s*\n/);
  return blocks.map((block) => {
    const lines = block.split("\n");
    if (lines[0].startsWith("#")) return html("h3", {}, lines[0].replace(/^#+ */, ""));
    if (lines[0].startsWith("- ")) return list(block);
    if (lines[0].startsWith("|")) return table(lines);
    return html("p", {}, ...inline(lines.join(" ")));
  });
}

function list(block) {
  const items = block.replace(/^- /, "").split(/\n- /);
  return html(
    "ul",
    {},
    ...items.map((item) => html("li", {}, ...inline(item.replace(/\s*\n\s*/g, " ")))),
  );
}

function table(lines) {
  const rows = lines.map((line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const body = rows.slice(2).map((cells) => {
    const [first, ...rest] = cells;
    return html(
      "tr",
      {},
      html("th", { scope: "row" }, ...inline(first)),
      ...rest.map((cell) => html("td", {}, ...inline(cell))),
    );
  });
  const head = rows[0].map((cell) => html("th", { scope: "col" }, cell));
  return html(
    "div",
    { className: "scroll", tabIndex: 0, attributes: { role: "group", "aria-label": "Table" } },
    html("table", {}, html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...body)),
  );
}

function inline(text) {
  return text
    .split(/(`[^`]*`)/)
    .filter((part) => part !== "")
    .map((part) => (part.startsWith("`") ? html("code", {}, part.slice(1, -1)) : part));
}
