"""What a judge said, read from the server's reply, and whether it obeys what was demanded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from segros_eval.benchmarks.base import JudgeRequest

__all__ = ["obeys", "reply_text"]


def reply_text(answer: Any) -> str | None:
    """Return the text of a chat completion, None where it has none."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (TypeError, LookupError):
        return None
    return text if isinstance(text, str) else None


def obeys(text: str, request: JudgeRequest) -> str:
    """Say how a reply breaks what its request demands; empty where it does not."""
    if request.choices and text not in request.choices:
        return f"the reply is none of {', '.join(request.choices)}: {text[:80]!r}"
    if request.schema is None:
        return ""
    try:
        value = json.loads(text)
    except ValueError:
        return f"the reply is no JSON: {text[:80]!r}"
    fault = _breach(value, json.loads(request.schema))
    return f"the reply breaks its schema: {fault}" if fault else ""


_JSON_TYPES: Mapping[str, type] = {"object": dict, "string": str, "integer": int}


def _breach(value: Any, schema: Mapping[str, Any]) -> str:
    """Say how a value breaks a schema of objects, whole numbers and texts; empty where it does not."""
    wanted = _JSON_TYPES[schema["type"]]
    is_wanted = isinstance(value, wanted) and not isinstance(value, bool)
    if not is_wanted:
        return f"{value!r} is no {schema['type']}"
    if wanted is int and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{value} is not within {schema.get('minimum')} to {schema.get('maximum')}"
    if wanted is not dict:
        return ""
    if lacking := [name for name in schema.get("required", ()) if name not in value]:
        return f"it lacks {', '.join(lacking)}"
    known = schema.get("properties", {})
    return next((fault for name in known if name in value and (fault := _breach(value[name], known[name]))), "")
