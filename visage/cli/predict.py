"""`visage predict`: photos -> what the model says of each face, as a table, JSON or CSV."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from visage.atomic import atomic_write, atomic_write_bytes
from visage.cli.failures import FAILED, CommandFailed
from visage.cli.options import Flip, Model, Precision, Runtime
from visage.cli.photo_list import NamedPhoto, PhotoList, photo_list
from visage.cli.reports import Answer, csv_rows, json_documents, table

if TYPE_CHECKING:
    import visage

JPEG_SUFFIXES = (".jpg", ".jpeg")
JPEG_QUALITY = 92


def predict(
    photos: Annotated[
        list[str],
        typer.Argument(help="Photos, folders (at any depth), patterns such as 'scans/**/*.png'."),
    ],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON document for one photo; else a document a line, with its file."
        ),
    ] = False,
    distribution: Annotated[
        bool, typer.Option("--distribution", help="With --json: each label's probability too.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, a row a face.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file; default: stdout.")
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(help="Write each photo with its boxes and values into this folder."),
    ] = None,
    model: Model = None,
    flip: Flip = True,
    runtime: Runtime = None,
    precision: Precision = "float",
) -> None:
    """Estimate age or attractiveness of every face of photos.

    Ends with 0 where every photo was answered (a photo without a face too), 1 where some could not
    be read, 2 where nothing was done.
    """
    if as_json and as_csv:
        raise CommandFailed("--json and --csv: give one of them")
    if distribution and not as_json:
        raise CommandFailed("--distribution belongs to --json")
    listed = photo_list(photos)
    drawings = {} if draw is None else drawings_of(listed, draw)
    if output is not None:
        _check_output(output, listed)

    import visage

    loaded = visage.load(model, runtime=runtime, precision=precision, flip=flip)
    unread = list(listed.refused)
    answers = _answers(loaded, listed, drawings, unread)
    # A bar and an answer that comes at the same time would stand in one line of the terminal.
    comes_in_between = (as_json or as_csv) and output is None and sys.stdout.isatty()
    with (
        _progress(answers, len(listed.photos), is_hidden=comes_in_between) as shown,
        _stream(output) as stream,
    ):
        if as_json:
            json_documents(stream, shown, listed.is_single, distribution)
        elif as_csv:
            csv_rows(stream, shown)
        else:
            table(stream, shown)

    for name, reason in unread:
        typer.echo(f"visage predict: {name}: {reason}", err=True)
    if unread:
        raise typer.Exit(FAILED)


def drawings_of(listed: PhotoList, folder: Path) -> dict[Path, Path]:
    """Photo -> the file in `folder` that it is drawn to: of a folder's photo its path below that
    folder, else its name; `.jpg` is added where the photo is no JPEG.

    Raises ValueError where two photos would get one file, or where the file exists: nothing is
    ever written over.
    """
    owners: dict[Path, NamedPhoto] = {}
    for photo in listed.photos:
        is_jpeg = photo.below.suffix.lower() in JPEG_SUFFIXES
        below = photo.below if is_jpeg else photo.below.with_name(f"{photo.below.name}.jpg")
        target = folder / below
        if target in owners:
            raise ValueError(
                f"{target}: both {owners[target].name} and {photo.name} would be drawn there; draw "
                f"them into folders of their own, or name their folder as a whole"
            )
        if os.path.lexists(target):
            raise ValueError(f"{target}: exists already; give --draw a new folder")
        owners[target] = photo

    return {photo.path: target for target, photo in owners.items()}


def _check_output(output: Path, listed: PhotoList) -> None:
    """ValueError, before the work, where the file cannot be written or is one of the photos."""
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"{output}: not a file in an existing folder; name one")
    for photo in listed.photos:
        if output.exists() and photo.path.exists() and output.samefile(photo.path):
            raise ValueError(f"{output}: this is a photo; give the output another name")


def _answers(
    model: visage.Model,
    listed: PhotoList,
    drawings: dict[Path, Path],
    unread: list[tuple[str, str]],
) -> Iterator[Answer]:
    """Each photo's result, drawn where a drawing is wanted. Photos that could not be read, or not
    be drawn, are added to `unread` with the reason."""
    results = model.predict_many(photo.path for photo in listed.photos)

    for photo, result in zip(listed.photos, results, strict=True):
        if not result.readable:
            unread.append((photo.name, result.reason or "cannot be read"))
        elif photo.path in drawings:
            try:
                _draw(result, drawings[photo.path])
            except (OSError, ValueError) as error:
                unread.append((photo.name, f"not drawn: {error}"))
        yield Answer(photo=photo, result=result)


def _draw(result: visage.PhotoPrediction, target: Path) -> None:
    picture = io.BytesIO()
    result.draw().save(picture, "JPEG", quality=JPEG_QUALITY)
    atomic_write_bytes(target, picture.getvalue())


@contextlib.contextmanager
def _progress(
    answers: Iterator[Answer], num_photos: int, *, is_hidden: bool
) -> Iterator[Iterator[Answer]]:
    """The answers, with a bar on the terminal of stderr where there are several."""
    if is_hidden or num_photos < 2 or not sys.stderr.isatty():
        yield answers
        return

    with typer.progressbar(answers, length=num_photos, label="photos", file=sys.stderr) as bar:
        yield iter(bar)


@contextlib.contextmanager
def _stream(output: Path | None) -> Iterator[TextIO]:
    """Where the answers go: stdout, or a file that appears when all are there. Bytes of a name that
    are no UTF-8 are written as escapes."""
    if output is not None:
        with (
            atomic_write(output) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            yield file
        return

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    yield sys.stdout
    sys.stdout.flush()
