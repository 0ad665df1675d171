"""The model that answers now, and how another takes its place while the server runs.

A `Source` knows what its name means now (`identity`) and loads it. The `Holder` loads the next
model beside the present one, lets it answer once, and then puts it in its place in one step:
requests that run finish with the model they started with, and none is lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visage.evaluation.drift import REFERENCE_FILE, Summary
from visage.inference.loading import config_of, load
from visage.model_config import ModelConfig, find_config
from visage.server.answers import Answers, Item
from visage.server.card import card_of
from visage.server.limits import Limits
from visage.server.score_maps import torch_score_maps
from visage.server.tables import PHOTO

# A summary of the newest faces; the oldest leave it a block at a time.
WINDOW_FACES = 2_000
BLOCK_FACES = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that can answer: what /ready calls it, its version (None outside a registry), its
    card in Markdown, its answers within their limits, and the faces that it has seen, beside those
    that it was trained on (None where that is not known)."""

    name: str
    version: str | None
    card: str
    answers: Answers
    seen: Summary
    reference: Summary | None

    @property
    def config(self) -> ModelConfig:
        return self.answers.predictor.config


class Source(Protocol):
    """Where a server's model comes from."""

    def identity(self) -> str:
        """What the name means now; another text means another model. ValueError where it means
        nothing."""

    def load(self) -> Loaded:
        """The model that the name means now. ValueError where it is missing or damaged."""

    def registry(self) -> dict[str, Any] | None:
        """Champion and challengers for the page that watches them; None without a registry."""


def loaded(
    folder: Path, *, name: str, version: str | None, limits: Limits, card: str | None = None
) -> Loaded:
    """The model in a folder behind limits; `card` replaces the one made from its config."""
    config = config_of(folder)
    summary = Summary.of(config, window_faces=WINDOW_FACES, block_faces=BLOCK_FACES)
    predictor = load(folder, observe=summary.add, max_photo_pixels=limits.max_photo_pixels)
    answers = Answers(predictor, limits, *torch_score_maps(folder, predictor))
    return Loaded(
        name=name,
        version=version,
        card=card or card_of(config),
        answers=answers,
        seen=summary,
        reference=_reference(folder),
    )


def _reference(folder: Path) -> Summary | None:
    file = folder / REFERENCE_FILE
    if not file.is_file():
        return None
    return Summary.from_document(json.loads(file.read_text(encoding="utf-8")), str(file))


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder with a model, called `name`."""

    folder: Path
    name: str
    limits: Limits

    def identity(self) -> str:
        """A digest of the config, which holds that of the weights."""
        config = find_config(self.folder)
        if config is None:
            raise ValueError(f"{self.folder}: holds no model (no config.json)")
        return hashlib.sha256(config.read_bytes()).hexdigest()

    def load(self) -> Loaded:
        return loaded(self.folder, name=self.name, version=None, limits=self.limits)

    def registry(self) -> dict[str, Any] | None:
        return None


class Holder:
    """The model that answers now. `on_load` is called with each one before it answers."""

    def __init__(self, source: Source, on_load: Callable[[Loaded], None]) -> None:
        self.source = source
        self._on_load = on_load
        self._loading = threading.Lock()
        self._identity = source.identity()
        self._current = self._ready()

    @property
    def current(self) -> Loaded:
        return self._current

    def refresh(self) -> bool:
        """Takes over what the source's name means now; whether that is another model. ValueError
        where it cannot be loaded: the present one goes on."""
        with self._loading:
            identity = self.source.identity()
            if identity == self._identity:
                return False
            self._current = self._ready()
            self._identity = identity
        _log.warning("answers from now on: %s, version %s", self.current.name, self.current.version)
        return True

    def _ready(self) -> Loaded:
        """A loaded model that has answered once: the first answer imports and sets up what the
        later ones use."""
        model = self.source.load()
        warm_up(model.answers)
        model.seen.clear()
        self._on_load(model)
        return model


def warm_up(answers: Answers) -> None:
    """Lets a model answer a drawn face."""
    from visage.synthetic import encode_face, sample_person, sample_photo

    rng = np.random.default_rng(0)
    photo = encode_face(sample_photo(sample_person(rng), rng, clean=True), 200)
    answers.answer([Item(PHOTO, photo)])


def ready_document(model: Loaded) -> dict[str, Any]:
    """What GET /ready says."""
    return {
        "ready": True,
        "name": model.name,
        "version": model.version,
        "model": model.config.name,
        "sha256": model.config.weights.sha256,
    }


def model_document(model: Loaded) -> dict[str, Any]:
    """What GET /model says: config, card, terms, limits, published errors, whether score maps can
    be asked for."""
    config = model.config
    return {
        "name": model.name,
        "version": model.version,
        "quantity": config.quantity,
        "unit": config.unit,
        "labels": dataclasses.asdict(config.grid),
        "card": model.card,
        "terms": config.terms,
        "metrics": config.metrics,
        "explain": model.answers.score_maps is not None,
        "explain_reason": model.answers.why_not or None,
        "request_limits": dataclasses.asdict(model.answers.limits),
        "config": json.loads(config.to_json()),
    }
