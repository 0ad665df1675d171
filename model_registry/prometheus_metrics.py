"""What a server has predicted, as numbers that Prometheus reads. No photo and no single prediction
is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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

# The server's visage is the package's own, which is imported when the package is loaded.
if TYPE_CHECKING:
    from visage.model_config import ModelConfig

# Upper ends of the histogram of response times, from a small crop to the longest wait
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
NUM_VALUE_BUCKETS = 20


class PrometheusMetrics:
    """The metrics of one server."""

    def __init__(self, config: ModelConfig, name: str, version: str | None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        model = Info("visage_model", "which model is served", registry=self.registry)
        model.info({"name": name, "version": version or "", "sha256": config.weights.sha256})
        self._requests = self._counter(
            "requests", "responses to POST /invocations by status", "status"
        )
        self._errors = self._counter("errors", "those with a status from 400 on")
        self._photos = self._counter("photos", "photos predicted, aligned faces not counted")
        self._without_face = self._counter("photos_without_face", "of these, photos without a face")
        self._faces = self._counter("faces", "faces predicted")
        self._seconds = Histogram(
            "visage_request_seconds",
            "from a request's start to its response",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._values = Histogram(
            "visage_value",
            f"predicted {config.quantity} of the faces predicted, {config.unit}",
            buckets=np.linspace(
                config.grid.minimum, config.grid.maximum, NUM_VALUE_BUCKETS + 1
            ).tolist(),
            registry=self.registry,
        )

    def watch(self, inside: Callable[[], float]) -> None:
        """Exports how many requests run or wait at the moment of reading."""
        Gauge(
            "visage_requests_inside", "requests running or waiting now", registry=self.registry
        ).set_function(inside)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"visage_{name}", text, labels, registry=self.registry)

    def count_response(self, status: int, seconds: float) -> None:
        """One response to a request, whatever its status."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)
        if status >= 400:
            self._errors.inc()

    def count_documents(self, documents: Sequence[dict[str, Any]]) -> None:
        """The photos, faces and values of one request's documents."""
        for document in documents:
            faces = document["faces"]
            # A face without a box was sent aligned: it is not a photo that was searched.
            self._photos.inc(not faces or faces[0]["box"] is not None)
            self._without_face.inc(not faces)
            self._faces.inc(len(faces))
            for face in faces:
                self._values.observe(face["value"])

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
