"""`--set field=value`: typed changes of declared values.

A field is named alone where one kind of value has it (`hint_ratio=0.5`), and with its owner where several do
(`recipe.batch_size=4`, `settings.batch_size=8`, `geneval.images_per_prompt=2`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from segros_train.errors import PrerequisiteError, Problem
from segros_train.types import DataCard

__all__ = ["Override", "apply_overrides", "parse_override", "parse_value"]

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Override:
    """One `--set`.

    Attributes:
        field: Name as given, with or without its owner.
        text: The value as given.
    """

    field: str
    text: str


def parse_override(argument: str) -> Override:
    """Split `field=value`.

    Raises:
        PrerequisiteError: If there is no `=` or no field.
    """
    name, equals, text = argument.partition("=")
    if not equals or not name.strip():
        raise PrerequisiteError(f"--set takes field=value, found {argument!r}", "Example: --set hint_ratio=0.5.")
    return Override(field=name.strip(), text=text.strip())


def apply_overrides(owners: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return `owners` with every override applied.

    Several owners may share one kind, e.g. the methods of a run: an owner called `kind:name` is addressed as
    `kind.field` with all others of its kind that have the field, or alone as `name.field`.

    Args:
        owners: Frozen dataclasses by owner name.
        overrides: What to change, in order.

    Raises:
        PrerequisiteError: Lists every override that names no field, more than one, or has a value of a wrong type.
    """
    changed = dict(owners)
    problems: list[Problem] = []
    for override in overrides:
        try:
            for owner in _addressed(changed, override):
                name = override.field.rpartition(".")[2]
                changed[owner] = _with_field(changed[owner], name, override)
        except PrerequisiteError as error:
            problems += error.problems
    if problems:
        raise PrerequisiteError.of(problems)
    return changed


def _addressed(owners: Mapping[str, Any], override: Override) -> list[str]:
    """Return the owners an override speaks of: all of one kind."""
    prefix, _, name = override.field.rpartition(".")
    holders = [owner for owner, value in owners.items() if name in _field_types(value)]
    if prefix:
        holders = [owner for owner in holders if prefix in owner.split(":")]
    if not holders:
        raise _unknown_field(owners, override)
    kinds = sorted({owner.split(":")[0] for owner in holders})
    if len(kinds) > 1:
        choices = " or ".join(f"{kind}.{name}" for kind in kinds)
        raise PrerequisiteError(f"--set {override.field}={override.text}: {name!r} is ambiguous", f"Write {choices}.")
    return holders


def _unknown_field(owners: Mapping[str, Any], override: Override) -> PrerequisiteError:
    by_kind: dict[str, set[str]] = {}
    for owner, value in owners.items():
        by_kind.setdefault(owner.split(":")[0], set()).update(_field_types(value))
    plain = {name for names in by_kind.values() for name in names}
    dotted = {f"{kind}.{name}" for kind, names in by_kind.items() for name in names}
    close = difflib.get_close_matches(override.field, sorted(plain | dotted), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    listing = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in sorted(by_kind.items()) if names)
    return PrerequisiteError(
        f"--set {override.field}={override.text}: no field {override.field!r} in this run",
        f"{hint}Fields: {listing}.",
    )


def _field_types(value: Any) -> dict[str, Any]:
    """Return the types of the fields that can be changed, by name; nothing for other values than dataclasses.

    Of training data, which `--data` chooses as a whole, it is the crop alone.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    hints = typing.get_type_hints(type(value))
    names = ["crop"] if isinstance(value, DataCard) else [field.name for field in dataclasses.fields(value)]
    return {name: hints[name] for name in names}


def _with_field(owner: Any, name: str, override: Override) -> Any:
    try:
        value = parse_value(override.text, _field_types(owner)[name])
        return dataclasses.replace(owner, **{name: value})
    except ValueError as error:
        raise PrerequisiteError(f"--set {override.field}={override.text}: {error}") from error


def parse_value(text: str, expected: Any) -> Any:
    """Read `text` as a value of the annotated type `expected`.

    Raises:
        ValueError: If it is none.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        if text.lower() in ("none", "null") and type(None) in arguments:
            return None
        return _first_that_reads(text, tuple(kind for kind in arguments if kind is not type(None)))
    if origin is Literal:
        return _choice(text, arguments)
    if origin is tuple:
        return _tuple(text, arguments)
    if expected is bool:
        return _boolean(text)
    if expected in (int, float):
        return _number(text, expected)
    if expected is str:
        return text
    if origin is not None and issubclass(origin, Mapping):
        return _json_object(text)
    raise ValueError("this field cannot be set from the command line; declare a value in tasks/ instead.")


def _first_that_reads(text: str, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds[:-1]:
        try:
            return parse_value(text, kind)
        except ValueError:
            continue
    return parse_value(text, kinds[-1])


def _choice(text: str, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if str(choice).lower() == text.lower():
            return choice
    close = difflib.get_close_matches(text, [str(choice) for choice in choices], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"expected one of {', '.join(map(str, choices))}, found {text!r}.{hint}")


def _tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(parse_value(part, kinds[0]) for part in parts)
    if len(parts) != len(kinds):
        raise ValueError(f"expected {len(kinds)} values separated by commas, found {text!r}.")
    return tuple(parse_value(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _boolean(text: str) -> bool:
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise ValueError(f"expected true or false, found {text!r}.")


def _number(text: str, kind: type) -> int | float:
    word = {int: "a whole number", float: "a number"}[kind]
    try:
        number = kind(text)
    except ValueError:
        raise ValueError(f"expected {word}, found {text!r}.") from None
    if number != number or abs(number) == float("inf"):
        raise ValueError(f"expected a finite number, found {text!r}.")
    return number


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {text!r}.")
    return value
