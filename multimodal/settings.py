"""Frozen dataclasses to JSON and back: an unknown key or a wrong type is an error that names it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import cattrs
from cattrs.preconf.json import make_converter

T = TypeVar("T")

_CONVERTER = make_converter(forbid_extra_keys=True)


def to_json(settings: Any) -> str:
    """Readable JSON of a dataclass of dataclasses, tuples, numbers and strings."""
    return json.dumps(_CONVERTER.unstructure(settings), indent=2) + "\n"


def from_json(kind: type[T], text: str, *, name: str) -> T:
    """The dataclass `kind` that `text` describes; ValueError with `name` and the offending key otherwise."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    _refuse_unknown(kind, values, name)
    try:
        return _CONVERTER.structure(values, kind)
    except cattrs.BaseValidationError as error:
        raise ValueError(f"{name}: {'; '.join(cattrs.transform_error(error))}") from error


def read(kind: type[T], path: Path) -> T:
    """The dataclass `kind` in the file at `path`."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; a run's folder holds one")
    return from_json(kind, path.read_text(encoding="utf-8"), name=str(path))


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value in `one`, value in `other`) for every setting in which two dataclasses of a kind differ."""
    if not is_dataclass(one) or type(one) is not type(other):
        if one != other:
            yield name, one, other
        return
    for field in fields(one):
        path = f"{name}.{field.name}" if name else field.name
        yield from differences(getattr(one, field.name), getattr(other, field.name), path)


def did_you_mean(word: str, known: list[str]) -> str:
    """' did you mean 'x'?' where one of `known` is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _refuse_unknown(kind: Any, values: Any, name: str) -> None:
    """Name the unknown key and its nearest neighbour before the converter does so in its own words."""
    if not is_dataclass(kind) or not isinstance(values, dict):
        return
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise ValueError(f"{name} has an unknown key {key!r}{did_you_mean(key, known)} Known: {', '.join(known)}")
    kinds = get_type_hints(kind)
    for key, value in values.items():
        _refuse_unknown(kinds[key], value, f"{name}: {key}")
