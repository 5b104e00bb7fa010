"""Reading dataclasses back from JSON, with every type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from edgevlm.errors import InputError

_WHERE, _HINT = "the spec of the bundle", "export the bundle again"


def build(annotation: Any, value: Any, path: str) -> Any:
    """Turn JSON `value` into the annotated type, checking as it goes."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _build_dataclass(annotation, value, path)
    origin = typing.get_origin(annotation)
    if origin is tuple and isinstance(value, list | tuple):
        arguments = typing.get_args(annotation)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            return tuple(build(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    elif origin is Literal:
        if value in typing.get_args(annotation):
            return value
    elif origin is types.UnionType:
        if value is None and type(None) in typing.get_args(annotation):
            return None
        return build(_member(annotation, value), value, path)
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(annotation, type) and type(value) is annotation:
        return value
    raise InputError(f"{path} has a value that does not fit: {value!r:.60}", _WHERE, _HINT)


def _member(union: types.UnionType, value: Any) -> Any:
    """The member of a union that `value` is read as: of several dataclasses, the one of its `kind`."""
    members = [member for member in typing.get_args(union) if member is not type(None)]
    kind = value.get("kind") if isinstance(value, dict) else None
    return next((member for member in members if getattr(member, "kind", None) == kind), members[0])


def _build_dataclass(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{path} must be an object", _WHERE, _HINT)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    missing = sorted(
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        problem = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise InputError(f"{path}: {problem}", _WHERE, _HINT)
    return cls(**{name: build(hints[name], item, f"{path}.{name}") for name, item in value.items()})
