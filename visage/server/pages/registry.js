// The registered champion, its challengers, and by which rules each was promoted or refused.

import { table } from "./charts.js";
import { html } from "./elements.js";

/** The contents of the pane; `registry` is null where the server answers without one. */
export function registryPane({ registry, model }) {
  if (registry === null) {
    return [
      html(
        "p",
        { className: "empty" },
        `This server answers with ${model.name} from a folder. Champion and challengers are shown ` +
          "where the registered champion is served (make serve).",
      ),
    ];
  }
  return [html("pre", {}, JSON.stringify(registry, null, 1)), table([], [], "")];
}
