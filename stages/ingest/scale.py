"""Labels on one scale become labels on another: y' = t0 + (y - s0) k, and sigma and an
interval's half width times k, k = (t1 - t0) / (s1 - s0).

So sets rated on 1 to 10 and on 1 to 7 can train and test the same model. The map is linear: it
moves the ends of one scale to those of the other. How raters use a scale is not considered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.ingest.records import ManifestRow, ReportSkip


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The lowest and the highest label of the set's own scale (`source`), and of the wanted one
    (`target`)."""

    source: tuple[float, float]
    target: tuple[float, float]

    def __post_init__(self) -> None:
        for name, (low, high) in (("source", self.source), ("target", self.target)):
            if low >= high:
                raise ValueError(f"{name} [{low:g}, {high:g}]: the lowest label comes first")

    def rows(self, rows: Iterator[ManifestRow], report_skip: ReportSkip) -> Iterator[ManifestRow]:
        """The rows on the target scale; a label off the source scale is listed, rows without one
        pass."""
        low, high = self.source
        least, most = self.target
        for row in rows:
            if row.label is None:
                yield row
            elif not low <= row.label <= high:
                report_skip(
                    row.photo_id, f"label {row.label:g} is off the scale of {low:g} to {high:g}"
                )
            else:
                label = min(most, least + (row.label - low) * (most - least) / (high - low))
                sigma = row.sigma * (most - least) / (high - low) if row.sigma is not None else None
                half_width = row.half_width
                if half_width is not None:
                    half_width *= (most - least) / (high - low)
                yield row._replace(label=label, sigma=sigma, half_width=half_width)
