"""Plain values as YAML and JSON hold them become the types of a dataclass, strictly; and the checks
of ranges that settings share.

A key that no field has, a field without a key and a value of another type are each a ValueError
that gives the value, its place and the remedy.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# 1e-05, as DVC writes it: PyYAML reads it as text.
POWER_OF_TEN = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
NOTHING: Mapping[str, Any] = {}


def from_plain(
    value: Any,
    wanted: Any,
    where: str,
    remedy: str,
    given: Mapping[str, Any] = NOTHING,
) -> Any:
    """A YAML or JSON value as the type `wanted`: dataclasses, unions with None, Literal, tuples,
    lists, dicts, paths, numbers, text.

    Each error begins with `where` and ends with `remedy`. `given`: fields of the dataclass `wanted`
    whose values are known already; `value` must not have them.
    """
    if dataclasses.is_dataclass(wanted):
        return _as_dataclass(value, typing.cast(type, wanted), where, remedy, given)

    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)

    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        return from_plain(value, kinds[0], where, remedy)

    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(repr, arguments))
            raise ValueError(f"{where}: {value!r} is not one of {known}; {remedy}")
        return value

    if origin in (dict, Mapping) or wanted is dict:
        return _as_dict(value, arguments or (str, Any), where, remedy)
    if origin in (tuple, list):
        return _as_sequence(value, origin, arguments, where, remedy)
    return _as_scalar(value, wanted, where, remedy)


def _as_dataclass(value: Any, cls: type, where: str, remedy: str, given: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a section with keys, found {value!r}; {remedy}")

    names = [field.name for field in dataclasses.fields(cls) if field.name not in given]

    unknown = sorted(set(value) - set(names), key=str)
    missing = sorted(set(names) - set(value))
    if unknown:
        known = ", ".join(names)
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys: {known}; {remedy}")
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; {remedy}")

    hints = typing.get_type_hints(cls)
    fields = {}
    for name in names:
        fields[name] = from_plain(value[name], hints[name], f"{where}.{name}", remedy)

    try:
        return cls(**fields, **given)
    except ValueError as error:
        # The dataclass's own __post_init__ check: add the place of the value.
        raise ValueError(f"{where}: {error}") from error


def _as_dict(value: Any, kinds: Sequence[Any], where: str, remedy: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys with values, found {value!r}; {remedy}")

    converted = {}
    for key, item in value.items():
        name = from_plain(key, kinds[0], f"{where}, key", remedy)
        converted[name] = from_plain(item, kinds[1], f"{where}.{key}", remedy)

    return converted


def _as_sequence(value: Any, origin: Any, kinds: Sequence[Any], where: str, remedy: str) -> Any:
    """A list, a tuple of any length (`tuple[int, ...]`), or a tuple with a type for each place."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, found {value!r}; {remedy}")

    of_one_kind = origin is list or (len(kinds) == 2 and kinds[1] is Ellipsis)
    if of_one_kind:
        kinds = [kinds[0]] * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{where}: expected {len(kinds)} values, found {len(value)}; {remedy}")

    converted = []
    for place, (item, kind) in enumerate(zip(value, kinds, strict=True)):
        converted.append(from_plain(item, kind, f"{where}[{place}]", remedy))

    return origin(converted)


def _as_scalar(value: Any, wanted: Any, where: str, remedy: str) -> Any:
    if wanted is Any:
        return value

    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, str) and POWER_OF_TEN.fullmatch(value):
        return float(value)

    if wanted is Path and isinstance(value, str):
        return Path(value)

    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{where}: expected {wanted.__name__}, found {value!r}; {remedy}")
    return value


def check_range(settings: object, **limits: tuple[float, float | None]) -> None:
    """Refuses a field outside its limits, which are both allowed: `check_range(self, quality=(1,
    100))`; None is no upper limit. ValueError names the field, its value and the limits."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if high is None and not low <= value:
            raise ValueError(f"{name} is {value}: give {low} or more")
        if high is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}: give {low} to {high}")


def check_positive(settings: object, *names: str) -> None:
    """Refuses a field that is 0 or below, or not a number."""
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise ValueError(f"{name} is {value}: give a number above 0")
