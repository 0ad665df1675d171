"""The command line: one photo -> one JSON document (make predict PHOTO=x.jpg).

python -m visage.cli PHOTO [--model FOLDER] [--flip | --no-flip]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from visage.inference.photos import Predictor, as_document
from visage.model_config import find_config


def default_model_folder(root: Path) -> Path:
    """The model that is used when none is named: models/export, else the released model that
    default.txt names."""
    exported = root / "models" / "export"
    released = root / "model_registry" / "released"

    if find_config(exported) is not None:
        return exported

    named = released / "default.txt"
    if not named.is_file():
        raise ValueError(
            f"no model in {exported} and no {named}: train one (make repro) or name one with "
            f"--model FOLDER"
        )

    return released / named.read_text(encoding="utf-8").strip()


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--model` and `--flip`, which every command that predicts takes."""
    parser.add_argument(
        "--model",
        type=Path,
        help="a model's folder; default: models/export, else the released model",
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average with the mirror image",
    )


def main() -> None:
    """The command line; an unreadable photo or an unusable model ends it with one line and exit
    status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.cli", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("photo", type=Path)
    add_model_options(parser)

    arguments = parser.parse_args()

    try:
        folder = arguments.model or default_model_folder(Path(__file__).resolve().parents[1])
        predictor = Predictor.load(folder)
        [result] = predictor.predict_photos([arguments.photo], arguments.flip)
        if not result.readable:
            raise ValueError(f"{arguments.photo}: {result.reason}")
    except ValueError as error:
        print(f"visage: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    print(json.dumps(as_document(result, predictor.config), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
