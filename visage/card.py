"""The model brings its eye: weights as safetensors, and beside them card.json, all that a prediction depends on.

The card is the one place that knows network, label grid, normalisation, alignment, detector and decoding rule of a
model (architecture rule 8); training, evaluation, export and serving read it, none retypes it. Loading refuses a
weights file that is truncated, edited or of another network, and a card edited since: the weights carry a note of what
they were trained to mean, the label grid above all. Calibration is no part of that meaning: it is fitted to finished
weights, and fitted again without touching them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from visage.labels import DECODERS, LabelGrid
from visage.methods import METHODS
from visage.networks import Network, Pooling, build
from visage.networks import check as check_network
from visage.whole import write_whole, written_whole

CARD_FORMAT = 2
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "card.json"
MEANING_KEY = "visage"  # the note inside the weights file
MEANING = ("quantity", "unit", "network", "grid", "method", "decode", "alignment", "detector", "normalise")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
INTERVAL_MASS = 0.8  # of the interval that is served, and of all that is called by it (coverage_80)


@dataclass(frozen=True, kw_only=True)
class NetworkCard:
    """Arguments of `visage.networks.build`."""

    name: str
    pooling: Pooling
    num_outputs: int

    def __post_init__(self) -> None:
        check_network(self.name, self.pooling)


@dataclass(frozen=True, kw_only=True)
class AlignmentCard:
    """How a crop is cut (five-point `template`, side in pixels, scale of the face in it) and kept (JPEG quality)."""

    template: str
    crop_px: int
    face_scale: float
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class DetectorCard:
    """MTCNN's settings: least face side in pixels, thresholds of its three nets, pyramid factor, longest photo side,
    and how often the landmarks are looked at again."""

    min_face_px: int
    thresholds: tuple[float, float, float]
    factor: float
    max_side_px: int
    landmark_passes: int


@dataclass(frozen=True, kw_only=True)
class NormaliseCard:
    """Per-channel mean and standard deviation of RGB in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """The file beside the card, its checksum and storage type."""

    file: str
    sha256: str
    dtype: Literal["float32", "float16"]
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class CalibrationCard:
    """How far the answers are to be believed, fitted on `num_faces` validation faces (visage.calibration).

    `temperature` of the distribution; `offset`, label units: what both ends of its central interval of `mass` move out
    by, below 0 where it was too wide. `flip`: fitted on the mean of face and mirror image.
    """

    temperature: float
    mass: float
    offset: float
    num_faces: int
    flip: bool

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.offset)):
            raise ValueError(
                f"temperature {self.temperature}, offset {self.offset}: the first must be above 0 and both finite; "
                "calibrate the model again"
            )
        if self.mass != INTERVAL_MASS:
            raise ValueError(f"mass {self.mass} is not {INTERVAL_MASS}, what is served; calibrate the model again")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything a prediction depends on (first block) and where the model comes from (second block)."""

    format: int
    name: str
    quantity: str
    unit: str
    network: NetworkCard
    grid: LabelGrid
    method: str
    decode: str
    alignment: AlignmentCard
    detector: DetectorCard
    normalise: NormaliseCard
    weights: WeightsCard
    calibration: CalibrationCard | None

    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    terms: str
    code: dict[str, Any]

    def to_json(self) -> str:
        """The card as indented JSON text with a closing newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=False, ensure_ascii=False) + "\n"

    def meaning(self) -> str:
        """The fields that say what the weights compute, as JSON: the note inside the weights file."""
        fields = dataclasses.asdict(self)
        return json.dumps({name: fields[name] for name in MEANING}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ModelCard:
        """The card in a JSON text; `source` names it in errors."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{source}: not valid JSON ({error}); take the card that came with the weights") from error
        if isinstance(document, dict) and document.get("format") == 1:
            raise ValueError(
                f"{source}: a model card of format 1, from before calibration; this version reads {CARD_FORMAT}. "
                'Export the model again, or (in card.json, not in ONNX) set "format": 2 and add "calibration": null'
            )
        if not isinstance(document, dict) or document.get("format") != CARD_FORMAT:
            raise ValueError(f"{source}: not a model card of format {CARD_FORMAT}; export the model again")
        card: ModelCard = _build(cls, document, source)
        card.check(source)
        return card

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """The card in a file."""
        if not path.is_file():
            raise ValueError(f"{path}: no model card here; a model is a folder with {WEIGHTS_FILE} and {CARD_FILE}")
        return cls.from_json(path.read_bytes(), str(path))

    def write(self, path: Path) -> None:
        """Writes the card; the file appears whole or not at all."""
        write_whole(path, self.to_json().encode())

    def build_network(self) -> Network:
        """The card's network, without its weights."""
        shape = self.network
        return build(shape.name, shape.pooling, shape.num_outputs, METHODS[self.method].shared_head)

    def check(self, source: str) -> None:
        """Refuses a card of unknown parts, or whose grid and network do not belong together."""
        for name, value, known in (("method", self.method, METHODS), ("decode", self.decode, DECODERS)):
            if value not in known:
                raise ValueError(f"{source}: {name} {value!r} is unknown; known: {', '.join(known)}")
        if Path(self.weights.file).name != self.weights.file:
            raise ValueError(f"{source}: weights.file {self.weights.file!r} must be a name beside the card")
        wanted = METHODS[self.method].head_width(self.grid)
        if self.network.num_outputs != wanted:
            raise ValueError(
                f"{source}: the network has {self.network.num_outputs} outputs, the label grid {self.grid.minimum}:"
                f"{self.grid.step}:{self.grid.maximum} needs {wanted}; card and model do not belong together"
            )


def _build(wanted: Any, value: Any, where: str) -> Any:
    """A JSON value as the type `wanted` (dataclass or None, Literal, tuple or plain), strict about keys and types."""
    if dataclasses.is_dataclass(wanted):
        kinds = typing.get_type_hints(wanted)
        odd = sorted(set(value) ^ set(kinds)) if isinstance(value, dict) else list(kinds)
        if odd:
            raise ValueError(f"{where}: fields missing or unknown: {', '.join(odd)}; export the model again")
        fields = {name: _build(kind, value[name], f"{where}: {name}") for name, kind in kinds.items()}
        try:
            return typing.cast(type, wanted)(**fields)
        except ValueError as error:  # a dataclass's own check: say where the value stands
            raise ValueError(f"{where}: {error}") from error
    origin, arguments = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if origin is types.UnionType:  # a part or None
        return None if value is None else _build(arguments[0], value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(_build(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    if origin is float and type(value) is int:
        return float(value)
    if isinstance(origin, type) and type(value) is origin:
        return value
    raise ValueError(f"{where}: {value!r} is not {wanted}; export the model again")


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_weights(
    network: torch.nn.Module, path: Path, dtype: Literal["float32", "float16"], meaning: str = "{}"
) -> WeightsCard:
    """A network's state as safetensors at `path` (whole or not at all), floating tensors stored as `dtype`.

    `meaning` travels inside the file; alone, since safetensors writes several notes in random order.
    """
    kind = DTYPES[dtype]
    state = {
        name: (value.to(kind) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    with written_whole(path) as part:
        save_file(state, part, metadata={MEANING_KEY: meaning})
        part.chmod(0o644)  # safetensors makes it readable by its owner alone
    count = sum(parameter.numel() for parameter in network.parameters())
    return WeightsCard(file=path.name, sha256=sha256_of(path), dtype=dtype, num_parameters=count)


def save_model(
    folder: Path, network: torch.nn.Module, card: ModelCard, dtype: Literal["float32", "float16"]
) -> ModelCard:
    """Writes weights and card into `folder` and returns the card as written (its `weights` filled in)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_weights(network, folder / WEIGHTS_FILE, dtype, card.meaning())
    written = dataclasses.replace(card, weights=weights)
    written.write(folder / CARD_FILE)
    return written


def load_model(folder: Path) -> tuple[Network, ModelCard]:
    """The network (float32, evaluation mode) and its card; refuses what does not belong together with a ValueError."""
    card = ModelCard.read(folder / CARD_FILE)
    path = folder / card.weights.file
    if not path.is_file():
        raise ValueError(f"{path}: the weights that {folder / CARD_FILE} names are missing; copy both files together")
    found = sha256_of(path)
    if found != card.weights.sha256:
        raise ValueError(
            f"{path}: sha256 {found[:12]}… is not the card's {card.weights.sha256[:12]}…: the file is truncated or was "
            "edited; fetch or export the model again"
        )
    _refuse_another_meaning(path, card)
    network = card.build_network()
    try:
        state = load_file(path)
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: not the weights of the card's network {card.network}: {error}") from error
    return network.eval(), card


def _refuse_another_meaning(path: Path, card: ModelCard) -> None:
    """The weights' own note against the card; a file without one (another tool's) is held to its checksum alone."""
    try:
        with safe_open(path, "pt") as file:
            noted = json.loads((file.metadata() or {}).get(MEANING_KEY, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    said = json.loads(card.meaning())
    for name, value in noted.items():
        if said.get(name) != value:
            raise ValueError(
                f"{path}: these weights were trained with {name} {value}, the card says {said.get(name)}; take the "
                "card that came with them"
            )
