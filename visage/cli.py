"""The command line: one photo -> one JSON document (make predict PHOTO=x.jpg).

python -m visage.cli PHOTO [--model FOLDER] [--flip | --no-flip]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from visage.inference.loading import load, model_folder
from visage.model_config import find_config


def default_model_folder(root: Path) -> Path:
    """The model that is used when none is named: models/export of a clone, else the default
    released model."""
    exported = root / "models" / "export"
    return exported if find_config(exported) is not None else model_folder(None)


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
        result = load(folder, flip=arguments.flip).predict(arguments.photo)
    except ValueError as error:
        print(f"visage: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    print(json.dumps(result.to_dict(), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
