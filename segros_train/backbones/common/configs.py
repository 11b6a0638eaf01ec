"""Configurations of families from the plain values of a `config.json`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

__all__ = ["from_plain"]

RETIRED = ("gradient_checkpointing",)
"""Fields of older versions, which decided nothing of what weights compute; they are passed over."""

Config = TypeVar("Config")


def from_plain(kind: type[Config], values: Any) -> Config:
    """Build a configuration, or a part of one, from plain values: lists become tuples, parts their own dataclasses.

    Args:
        kind: A dataclass; its fields of dataclasses are parts, which None may stand for where the type says so.
        values: Values by the names of fields.

    Raises:
        ValueError: If a field is unknown or missing.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__} needs named fields, found {type(values).__name__}.")
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    values = {name: value for name, value in values.items() if name in known or name not in RETIRED}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}.")
    types = get_type_hints(kind)
    plain = {name: _value(types[name], value) for name, value in values.items()}
    try:
        return kind(**plain)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _value(declared: Any, value: Any) -> Any:
    choices = get_args(declared) or (declared,)
    part = next((choice for choice in choices if is_dataclass(choice)), None)
    if isinstance(part, type) and not (value is None and type(None) in choices):
        return from_plain(part, value)
    return tuple(value) if isinstance(value, list) else value
