"""The numbers behind the page /monitor, and behind the drift check: GET /statistics.

The newest requests and values only, in constant memory. No photo, no face, no address.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from visage.evaluation.drift import NUM_BINS, drift
from visage.server.models import Loaded

WINDOW_REQUESTS = 2_000
WINDOW_VALUES = 2_000
WINDOW_MINUTES = 60
PERCENTILES = (50, 90, 99)


class Statistics:
    """Of one server since its start."""

    def __init__(self) -> None:
        self._started = time.time()
        self._lock = threading.Lock()
        self._status: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=WINDOW_REQUESTS)
        self._minutes: deque[tuple[int, Counter[str]]] = deque(maxlen=WINDOW_MINUTES)
        self._photos: Counter[str] = Counter()
        self._values: deque[float] = deque(maxlen=WINDOW_VALUES)

    def begin(self) -> None:
        """Another model answers from now on: its values are counted apart."""
        with self._lock:
            self._values.clear()

    def count_response(self, status: int, seconds: float, refusal: str | None) -> None:
        """One response to a request, whatever its status, and the kind of its refusal."""
        minute = int(time.time() // 60)
        with self._lock:
            self._status[str(status)] += 1
            if refusal is not None:
                self._refusals[refusal] += 1
            # Only what was answered says how long an answer takes
            if status < 400:
                self._seconds.append(seconds)

            if not self._minutes or self._minutes[-1][0] != minute:
                self._minutes.append((minute, Counter()))
            counts = self._minutes[-1][1]
            counts["requests"] += 1
            counts["errors"] += status >= 400

    def count_documents(self, documents: Sequence[dict[str, Any]]) -> None:
        """The photos, faces and values of one request's documents."""
        with self._lock:
            for document in documents:
                faces = document["faces"]
                self._photos["photos"] += not faces or faces[0]["box"] is not None
                self._photos["photos_without_face"] += not faces
                self._photos["faces"] += len(faces)
                self._values.extend(face["value"] for face in faces)

    def document(
        self, model: Loaded, gauges: dict[str, int], registry: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Plain JSON values. The keys of `visage.evaluation.drift.Summary` stand at the top, for
        the drift check; the rest is for people."""
        return model.seen.as_document() | {
            "model": {"name": model.name, "version": model.version},
            "quantity": model.config.quantity,
            "unit": model.config.unit,
            "server": self._server(gauges),
            "latency_seconds": self._latency(),
            "minutes": self._recent(),
            "values": self._histograms(model),
            "drift": _drift(model),
            "registry": registry,
        }

    def _server(self, gauges: dict[str, int]) -> dict[str, Any]:
        with self._lock:
            photos = self._photos["photos"]
            return {
                "started": datetime.fromtimestamp(self._started, UTC).isoformat("T", "seconds"),
                "uptime_seconds": time.time() - self._started,
                "requests": dict(self._status),
                "refusals": dict(self._refusals),
                "photos": photos,
                "photos_without_face": self._photos["photos_without_face"],
                "faces": self._photos["faces"],
                "no_face_rate": self._photos["photos_without_face"] / photos if photos else None,
            } | gauges

    def _latency(self) -> dict[str, float | int | None]:
        """Of the newest answers; refusals are not counted."""
        with self._lock:
            seconds = list(self._seconds)
        found: dict[str, float | int | None] = {"answers": len(seconds)}
        for percentile in PERCENTILES:
            value = float(np.percentile(seconds, percentile)) if seconds else None
            found[f"p{percentile}"] = value
        return found

    def _recent(self) -> list[dict[str, Any]]:
        """The minutes of the last hour in which requests came."""
        first = int(time.time() // 60) - WINDOW_MINUTES
        with self._lock:
            minutes = [(minute, dict(counts)) for minute, counts in self._minutes]
        rows = []
        for minute, counts in minutes:
            if minute > first:
                start = datetime.fromtimestamp(60 * minute, UTC).isoformat("T", "minutes")
                rows.append({"minute": start} | counts)
        return rows

    def _histograms(self, model: Loaded) -> dict[str, Any]:
        """Served and training values by bin of the label grid; shares that add up to 1."""
        grid = model.config.grid
        edges = np.linspace(grid.minimum, grid.maximum, NUM_BINS + 1)
        with self._lock:
            values = np.array(self._values, np.float64)
        counts, _ = np.histogram(np.clip(values, grid.minimum, grid.maximum), edges)
        training = None
        if model.reference is not None:
            training = _shares(model.reference.totals().histogram)
        return {
            "edges": edges.tolist(),
            "num_served": len(values),
            "served": _shares(counts),
            "training": training,
        }


def _shares(counts: Any) -> list[float] | None:
    total = float(np.sum(counts))
    return (np.asarray(counts) / total).tolist() if total else None


def _drift(model: Loaded) -> dict[str, float | int] | None:
    """Served against training faces; None where one of the two is too few or not known."""
    if model.reference is None:
        return None
    try:
        found = vars(drift(model.reference, model.seen))
    except ValueError:
        return None
    return found if all(math.isfinite(value) for value in found.values()) else None
