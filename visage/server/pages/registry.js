// The registered champion, its challengers, and by which rules each was promoted or refused.

import { table } from "./charts.js";
import { fixed, html, percent, sentence } from "./elements.js";

/** The contents of the pane; `registry` is null where the server answers without one. */
export function registryPane({ registry, model, unit }) {
  if (registry === null) {
    return [
      html(
        "p",
        { className: "empty" },
        `This server answers with ${model.name} from a folder, or its registry does not answer. ` +
          "Champion and challengers are shown where the registered champion is served.",
      ),
    ];
  }

  const versions = registry.versions.map((version) => row(version, registry, unit));
  const heads = ["Version", "Registered", "Mean absolute error", "Inside the 80 % interval", "Decision"];
  const parts = [table(heads, versions, "Champion and challengers")];
  if (registry.history.length > 0) parts.push(events(registry.history));
  return parts;
}

function row(version, { champion, challenger }, unit) {
  const roles = [];
  if (version.version === champion) roles.push(html("span", { className: "role" }, "champion"));
  else if (version.version === challenger) roles.push(html("span", { className: "role quiet" }, "challenger"));
  const error = version.metrics["test.mae"];
  return [
    html("span", { className: "version" }, `${version.version}`, ...roles),
    new Date(version.created_ms).toLocaleDateString("en-GB", { dateStyle: "medium" }),
    error === undefined ? "–" : `${fixed(error, 2)} ${unit}`,
    percent(version.metrics["test.coverage_80"]),
    decision(version),
  ];
}

/** What was decided about a version, against which one, and why. */
function decision({ decision: decided, decided_against: against, reasons }) {
  if (!decided) return "not compared yet";
  const beside = against ? ` beside version ${against}` : "";
  const head = html("strong", {}, `${decided}${beside}`);
  return html("div", {}, head, reasons ? html("p", { className: "small" }, sentence(reasons)) : null);
}

function events(history) {
  const rows = [...history].reverse().map((event) => [
    new Date(event.time.replace(/([+-]\d\d)(\d\d)$/, "$1:$2")).toLocaleString("en-GB", {
      dateStyle: "medium",
      timeStyle: "short",
    }),
    `${event.version}`,
    event.action,
    event.reason,
  ]);
  return html(
    "details",
    {},
    html("summary", {}, "History"),
    table(["Time", "Version", "Event", "Reason"], rows, "History"),
  );
}
