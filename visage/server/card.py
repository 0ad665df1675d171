"""The card of a model that brings none: what it predicts, how well, and what it must not be used
for, in Markdown."""

from __future__ import annotations

from typing import Any

from visage.model_config import ModelConfig

LIMITS = """\
- A prediction is how old or attractive a face looks to the people who gave the labels. It is not a
  person's age or worth, it proves no age, and it must not decide anything about a person on its
  own.
- Faces unlike those of the training and test data (groups with few or no faces, other cameras,
  strong pose, masks) may be misjudged without any sign of it.
- The interval holds its share over all faces of the test set; single groups are above or below
  it."""
SHOWN = {"mae": "mean absolute error", "coverage_80": "share inside the 80 % interval"}


def card_of(config: ModelConfig) -> str:
    """A config's card."""
    head = (
        f"It predicts {config.quantity} in {config.unit}, from {config.grid.minimum:g} to "
        f"{config.grid.maximum:g}: a value, a distribution and an 80 % interval."
    )
    figures = [f"- {line}" for line in _figures(config.metrics.get("test"))]
    return "\n".join(
        [
            f"# {config.name}",
            "",
            head,
            "",
            "## How well",
            "",
            *(figures or ["- no error was published with this model"]),
            "",
            "## Limits",
            "",
            LIMITS,
            "",
            "## Terms",
            "",
            config.terms,
            "",
        ]
    )


def _figures(test: Any) -> list[str]:
    """The published figures of the test faces, as lines."""
    lines = []
    for name, words in SHOWN.items():
        figure = test.get(name) if isinstance(test, dict) else None
        if isinstance(figure, dict) and "value" in figure:
            lines.append(
                f"{words}: {figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"
            )
    return lines
