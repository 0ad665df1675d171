"""What a model's folder says of its weights: config.json, all that a prediction depends on.

The config is the only place that holds network, label grid, normalisation, alignment, detector and
decoding rule of a model (architecture rule 7). Training, evaluation, export and serving read it.
`visage.weights` refuses weights that were trained with another meaning, the label grid above all.
Calibration is no part of that meaning: it is fitted to finished weights, and fitted again without
touching them.

Format 3 names a network's own settings `options`. Format 2 (the file was `card.json`) had `pooling`
in their place and is still read; format 1, from before calibration, is refused with the remedy.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visage.atomic import atomic_write_bytes
from visage.labels import DECODERS, LabelGrid
from visage.strict import from_plain

CONFIG_FORMAT = 3
OLDER_FORMAT = 2  # still read
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OLDER_CONFIG_FILE = "card.json"  # the config's name in format 2
InputKind = Literal["rgb", "grey", "sobel"]
MEANING = (
    "quantity",
    "unit",
    "network",
    "grid",
    "method",
    "decode",
    "alignment",
    "detector",
    "normalise",
)
# Of the interval that is served, and of every figure that has it in its name (coverage_80)
INTERVAL_MASS = 0.8


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Arguments of `visage.networks.build`, which checks them; `options` are the network's own,
    plain JSON values."""

    name: str
    options: dict[str, Any]
    num_outputs: int


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """How a crop is cut (five-point `template`, side in pixels, scale of the face in it) and kept
    (JPEG quality)."""

    template: str
    crop_px: int
    face_scale: float
    jpeg_quality: int


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """MTCNN's settings: least face side in pixels, thresholds of its three nets, pyramid factor,
    longest photo side, and how often the landmarks are looked at again."""

    min_face_px: int
    thresholds: tuple[float, float, float]
    factor: float
    max_side_px: int
    landmark_passes: int


@dataclass(frozen=True, kw_only=True)
class NormaliseConfig:
    """What a network sees of a crop: its kind of `input` (`visage.networks.inputs`), and mean and
    standard deviation of that input's three channels, of colours in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input: InputKind = "rgb"


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """The weights file in the config's folder, its checksum and storage type."""

    file: str
    sha256: str
    dtype: Literal["float32", "float16"]
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Temperature scaling and a conformal offset of the interval, fitted on `num_faces` validation
    faces (visage.inference.calibration).

    `temperature` of the distribution; `offset`, label units: what both ends of its central interval
    of `mass` move out by, below 0 where it was too wide. `flip`: fitted on the mean of face and
    mirror image.
    """

    temperature: float
    mass: float
    offset: float
    num_faces: int
    flip: bool

    def __post_init__(self) -> None:
        is_finite = math.isfinite(self.temperature) and math.isfinite(self.offset)
        if not (is_finite and self.temperature > 0):
            raise ValueError(
                f"temperature {self.temperature}, offset {self.offset}: the first must be above 0 "
                f"and both finite; calibrate the model again"
            )

        if self.mass != INTERVAL_MASS:
            raise ValueError(
                f"mass {self.mass} is not {INTERVAL_MASS}, what is served; calibrate the model "
                f"again"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything a prediction depends on (first block) and where the model comes from (second
    block)."""

    format: int
    name: str
    quantity: str
    unit: str
    network: NetworkConfig
    grid: LabelGrid
    method: str
    decode: str
    alignment: AlignmentConfig
    detector: DetectorConfig
    normalise: NormaliseConfig
    weights: WeightsConfig
    calibration: CalibrationConfig | None

    training: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    terms: str
    code: dict[str, Any]

    def to_json(self) -> str:
        """The config as indented JSON text with a closing newline."""
        document = dataclasses.asdict(self)
        return json.dumps(document, indent=1, sort_keys=False, ensure_ascii=False) + "\n"

    def meaning(self) -> str:
        """The fields that say what the weights compute, as JSON: the note in the weights file."""
        fields = dataclasses.asdict(self)
        return json.dumps({name: fields[name] for name in MEANING}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ModelConfig:
        """The config in a JSON text, also of the format before; `source` names it in errors."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"{source}: not valid JSON ({error}); take the config that came with the weights"
            ) from error

        if isinstance(document, dict) and document.get("format") == 1:
            raise ValueError(
                f"{source}: a config of format 1, from before calibration; this version reads "
                f"{OLDER_FORMAT} and {CONFIG_FORMAT}. Export the model again, or (in card.json, "
                f'not in ONNX) set "format": 2 and add "calibration": null'
            )
        if isinstance(document, dict) and document.get("format") == OLDER_FORMAT:
            network = current_network(document.get("network"))
            document |= {"format": CONFIG_FORMAT, "network": network}
        if isinstance(document, dict) and "normalise" in document:
            document |= {"normalise": current_normalise(document["normalise"])}
        if not isinstance(document, dict) or document.get("format") != CONFIG_FORMAT:
            raise ValueError(
                f"{source}: not a config of format {CONFIG_FORMAT}; export the model again"
            )

        config: ModelConfig = from_plain(
            document, cls, f"{source}: config", "export the model again"
        )
        config.check(source)
        return config

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """The config in a file."""
        if not path.is_file():
            raise ValueError(
                f"{path}: no config here; a model is a folder with {WEIGHTS_FILE} and {CONFIG_FILE}"
            )
        return cls.from_json(path.read_bytes(), str(path))

    def write(self, path: Path) -> None:
        """Writes the config atomically."""
        atomic_write_bytes(path, self.to_json().encode())

    def check(self, source: str) -> None:
        """Refuses a config of an unknown decoding rule or with the weights elsewhere. Network and
        method are checked where the network is built (`visage.weights.build_network`): an ONNX file
        is run where torch is not installed."""
        if self.decode not in DECODERS:
            raise ValueError(
                f"{source}: decode {self.decode!r} is unknown; known: {', '.join(DECODERS)}"
            )

        if Path(self.weights.file).name != self.weights.file:
            raise ValueError(
                f"{source}: weights.file {self.weights.file!r} must be a name beside the config"
            )


def find_config(folder: Path) -> Path | None:
    """The file in a model's folder that holds its config, in format 2 `card.json`; None where there
    is none."""
    for name in (CONFIG_FILE, OLDER_CONFIG_FILE):
        if (folder / name).is_file():
            return folder / name
    return None


def current_network(network: Any) -> Any:
    """A network as format 2 has it, {name, pooling, num_outputs} -> as format 3 has it, {name,
    options, num_outputs}.

    VGG-16's pooling was always `flatten`, and is no option. Anything else stays as it is.
    """
    if not isinstance(network, dict) or "pooling" not in network:
        return network
    rest = dict(network)
    pooling = rest.pop("pooling")
    options = {} if pooling == "flatten" else {"pooling": pooling}
    return rest | {"options": options}


def current_normalise(normalise: Any) -> Any:
    """A normalisation as configs had it when RGB was the only input, {mean, std} -> with its kind
    of input. Anything else stays as it is."""
    if not isinstance(normalise, dict) or "input" in normalise:
        return normalise
    return normalise | {"input": "rgb"}
