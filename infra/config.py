"""Configs: frozen pydantic models whose unknown fields are errors, with overrides from the command line.

Identity is not execution: a field made by `execution()` (device, worker count, batch of an encoder) changes how a
result is made, not what it is, and is left out of the fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from infra.errors import UserError
from infra.hashing import sha256_json

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """The fields that change the result, as JSON values."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution"):
                continue
            value = getattr(self, name)
            if isinstance(extra, dict) and extra.get("added") and value == field.default:
                continue
            out[name] = value.identity() if isinstance(value, Config) else _plain(self, name)
        return out

    def fingerprint(self) -> str:
        """SHA256 over the class name and the identity."""
        return sha256_json([type(self).__name__, self.identity()])

    def replace(self, **changes: Any) -> Self:
        """A validated copy with fields changed; `a__b=1` changes field b of field a."""
        return apply_overrides(self, [(name.replace("__", "."), value) for name, value in changes.items()])


def _plain(config: Config, name: str) -> Any:
    return config.model_dump(mode="json", include={name})[name]


def execution(default: Any, **options: Any) -> Any:
    """A field that says how to run, not what to make: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"execution": True}, **options)


def added(default: Any, **options: Any) -> Any:
    """A field younger than the artifacts that exist: at its default, which means what they did, it stays out of the
    fingerprint."""
    return Field(default, json_schema_extra={"added": True}, **options)


def parse_override(text: str, config: type[Config] | None = None) -> tuple[str, Any]:
    """`train.steps=200` to ("train.steps", 200); the value is YAML, except that of a text field of `config`.

    A text field takes what stands there: `animation.prompt=a dog: #1` needs no quotes.
    """
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise UserError(
            f"--set {text!r} has no field or no '='.",
            "An override names a field of the recipe and its value.",
            "Write it as --set train.steps=200.",
        )
    path = path.strip()
    kinds = set() if config is None else _kinds_of_field(config, path.split("."))
    if kinds & {str, Path} and kinds <= {str, Path, type(None)}:
        text, quoted = value.strip(), re.fullmatch(r"""\s*(["'])(.*)\1\s*""", value, re.DOTALL)
        empty = text.lower() in ("null", "none", "~") and type(None) in kinds
        return path, None if empty else quoted[2] if quoted else text
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"The value of --set {text!r} is not YAML: {str(error).splitlines()[0]}.",
            "A list is written [a, b], and text with a colon or a # in quotes.",
            "Correct the value.",
        ) from None


def _kinds_of_field(config: type[Config], path: Sequence[str]) -> set[Any]:
    """The types that a field may have, its unions and literals taken apart; empty if there is no such field."""
    kinds: set[Any] = {config}
    for name in path:
        fields = [kind.model_fields.get(name) for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        kinds = {kind for field in fields if field is not None for kind in _alternatives(field.annotation)}
    return kinds


def _alternatives(annotation: Any) -> set[Any]:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return {kind for each in get_args(annotation) for kind in _alternatives(each)}
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation if origin is None else origin}


def apply_overrides(config: C, overrides: Sequence[str | tuple[str, Any]]) -> C:
    """The config with every override applied and validated.

    Raises:
        UserError: no such field (the message lists the fields there are), or a value the field refuses.
    """
    tree = config.model_dump()
    for override in overrides:
        path, value = parse_override(override, type(config)) if isinstance(override, str) else override
        node: Any = tree
        *parents, last = path.split(".")
        for depth, part in enumerate([*parents, last]):
            if not isinstance(node, dict) or part not in node:
                fields = ", ".join(node) if isinstance(node, dict) else "none"
                raise UserError(
                    f"The recipe has no field {path!r}: {part!r} is not known.",
                    f"Fields there: {fields}.",
                    "Correct the name after --set.",
                )
            if depth < len(parents):
                node = node[part]
        node[last] = value
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        details = "; ".join(_detail(each) for each in error.errors())
        raise UserError(
            "An override does not fit its field.", details + ".", "Correct the value after --set."
        ) from None


def _detail(error: ErrorDetails) -> str:
    """`train.steps: Input should be … (got 'soon')`; of fields that contradict each other, what they say."""
    place, said = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" + ("" if isinstance(error["input"], dict) else f" (got {error['input']!r})")
