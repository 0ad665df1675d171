// How far the served faces are from the training faces, beside the limits that start a retraining.

import { fixed, html, svg } from "./elements.js";

// The limits of params.yaml, section drift, as delivered, and what the measures mean
const MEASURES = [
  {
    key: "value_psi",
    name: "Predicted values",
    limit: 0.2,
    text: "population stability index of the histogram of values",
  },
  {
    key: "feature_distance",
    name: "Features",
    limit: 0.1,
    text: "shift of what the model's head sees, in units of how much faces differ anyway",
  },
];
const FEW_FACES = 200;

/** The contents of the pane: `drift` of /statistics (null: nothing to compare), whether the training
 * faces are `known`. */
export function driftPane({ drift, known, unit }) {
  if (!known) {
    return [note("This model brings no summary of its training faces, so there is nothing to compare with.")];
  }
  if (drift === null) return [note("Too few faces were served to compare them with the training faces.")];

  const parts = MEASURES.map((measure) => meter(measure, drift[measure.key]));
  const few = drift.num_faces < FEW_FACES ? ` Below ${FEW_FACES} faces the figures vary a lot.` : "";
  parts.push(
    html(
      "p",
      { className: "small" },
      `Mean of ${fixed(drift.num_faces)} served faces: ${fixed(drift.value_mean, 1)} ${unit}; ` +
        `of the training faces: ${fixed(drift.reference_value_mean, 1)} ${unit}.${few}`,
    ),
  );
  return parts;
}

function meter({ name, limit, text }, value) {
  const beyond = value > limit;
  const x = (number) => (Math.min(Math.max(number, 0), 2 * limit) / (2 * limit)) * 100;
  return html(
    "div",
    { className: "measure" },
    html(
      "p",
      { className: "measure-head" },
      html("strong", {}, name),
      html("span", { className: beyond ? "verdict beyond" : "verdict" }, beyond ? "beyond the limit" : "inside the limit"),
      html("span", { className: "measure-value" }, fixed(value, 3)),
    ),
    svg(
      "svg",
      { class: beyond ? "meter beyond" : "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "meter-track", x: 0, y: 1, width: 100, height: 4 }),
      svg("rect", { class: "meter-value", x: 0, y: 1, width: x(value), height: 4 }),
      svg("rect", { class: "meter-limit", x: 49.8, y: 0, width: 0.4, height: 6 }),
    ),
    html("p", { className: "small" }, `Limit ${limit}: ${text}.`),
  );
}

function note(text) {
  return html("p", { className: "empty" }, text);
}
