"""A struct of a MATLAB file (CACD, IMDB-WIKI) as columns of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from stages.ingest.records import from_repository


def read_struct(path: Path, variable: str, fields: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Field -> its column; ValueError where the file, the struct or a field is not there, or
    lengths differ.

    Cells of text become arrays of objects, each a str, or an empty array where the cell is empty.
    """
    file = from_repository(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; correct download.<role>.options")

    try:
        found = loadmat(file, squeeze_me=True, variable_names=[variable])
    except NotImplementedError as error:
        raise ValueError(
            f"{file}: a MATLAB 7.3 file; save it in MATLAB with -v7, or take the set's own file"
        ) from error
    except (MatReadError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"{file}: no MATLAB file, or cut short ({error}); fetch it again"
        ) from error

    names = found[variable].dtype.names if variable in found else None
    if names is None or not set(fields) <= set(names):
        raise ValueError(
            f"{file}: expected a struct {variable!r} with the fields {', '.join(fields)}, "
            f"found {names}"
        )

    columns = {field: np.atleast_1d(found[variable][field].item()) for field in fields}
    if len({len(column) for column in columns.values()}) > 1:
        lengths = {field: len(column) for field, column in columns.items()}
        raise ValueError(
            f"{file}: the fields of {variable!r} differ in length: {lengths}; fetch it again"
        )
    return columns


def text(cell: Any) -> str:
    """A cell's text, blanks at its ends stripped; an empty cell is an empty text."""
    return cell.strip() if isinstance(cell, str) else ""
