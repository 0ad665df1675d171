"""What a server has predicted, as numbers that Prometheus reads. No photo and no single prediction
is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from visage.server.models import Loaded

# Upper ends of the histogram of response times, from a small crop to the longest wait
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
NUM_VALUE_BUCKETS = 20


class Metrics:
    """The metrics of one server; those of its model begin again with the next one."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._counter(
            "requests", "responses to POST /predict and /invocations by status", "status"
        )
        self._errors = self._counter("errors", "those with a status from 400 on")
        self._refusals = self._counter("refusals", "refusals by kind (docs/serve.md)", "kind")
        self._photos = self._counter("photos", "photos predicted, aligned faces not counted")
        self._without_face = self._counter("photos_without_face", "of these, photos without a face")
        self._faces = self._counter("faces", "faces predicted")
        self._reloads = self._counter("reloads", "models taken over or not", "result")
        self._seconds = Histogram(
            "visage_request_seconds",
            "from a request's start to its response",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._of_model = CollectorRegistry()
        self._values: Histogram | None = None

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Exports a number at the moment of reading."""
        Gauge(f"visage_{name}", text, registry=self._registry).set_function(read)

    def begin(self, model: Loaded) -> None:
        """The metrics of the model that answers from now on."""
        config = model.config
        registry = CollectorRegistry()
        info = Info("visage_model", "which model is served", registry=registry)
        version = model.version or ""
        info.info({"name": model.name, "version": version, "sha256": config.weights.sha256})
        edges = np.linspace(config.grid.minimum, config.grid.maximum, NUM_VALUE_BUCKETS + 1)
        self._values = Histogram(
            "visage_value",
            f"predicted {config.quantity} of the faces predicted, {config.unit}",
            buckets=edges.tolist(),
            registry=registry,
        )
        self._of_model = registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"visage_{name}", text, labels, registry=self._registry)

    def count_response(self, status: int, seconds: float, refusal: str | None) -> None:
        """One response to a request, whatever its status, and the kind of its refusal."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)
        if status >= 400:
            self._errors.inc()
        if refusal is not None:
            self._refusals.labels(refusal).inc()

    def count_reload(self, result: str) -> None:
        """A reload that was `taken over` or `failed`."""
        self._reloads.labels(result).inc()

    def count_documents(self, documents: Sequence[dict[str, Any]]) -> None:
        """The photos, faces and values of one request's documents."""
        for document in documents:
            faces = document["faces"]
            # A face without a box was sent aligned: it is not a photo that was searched.
            self._photos.inc(not faces or faces[0]["box"] is not None)
            self._without_face.inc(not faces)
            self._faces.inc(len(faces))
            for face in faces:
                assert self._values is not None
                self._values.observe(face["value"])

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry) + generate_latest(self._of_model)
