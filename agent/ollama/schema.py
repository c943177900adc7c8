"""The shortest JSON that a JSON schema allows, as a grammar would force a model to write it.

The first list of words in the schema is the choice; everything else is filled with the plainest value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SchemaError", "choices", "fill"]

_DEPTH_MAX = 8
_ITEMS_MAX = 16
_VALUES_MAX = 256
_PLAIN_TEXT = "by the numbers"
_MARK = "\x00"


class SchemaError(ValueError):
    """A JSON schema that cannot be followed; the message says where."""


def choices(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words of the schema's choice; empty where it has none.

    Raises:
        SchemaError: The schema cannot be followed.
    """
    filler = _Filler(schema)
    filler.value(schema, 0)
    return filler.words


def fill(schema: Mapping[str, Any], word: str) -> tuple[str, int | None]:
    """Return the JSON text with `word` as its choice, and where the word stands in it; None without a choice.

    Raises:
        SchemaError: The schema cannot be followed.
    """
    text = json.dumps(_Filler(schema).value(schema, 0), ensure_ascii=False)
    mark = json.dumps(_MARK)
    at = text.find(mark)
    if at < 0:
        return text, None
    return text.replace(mark, json.dumps(word, ensure_ascii=False)), at + 1


class _Filler:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _VALUES_MAX
        self.words: tuple[str, ...] = ()

    def value(self, schema: object, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise SchemaError(f"schema asks for more than {_VALUES_MAX} values")
        if depth > _DEPTH_MAX or not isinstance(schema, Mapping):
            raise SchemaError(f"schema is nested deeper than {_DEPTH_MAX}, or is not an object: {str(schema)[:60]}")
        if "$ref" in schema:
            return self.value(self._referred(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._word(schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                return self.value(schema[key][0], depth + 1)
        return self._typed(schema, depth)

    def _word(self, words: Any) -> Any:
        if not self.words and all(isinstance(word, str) for word in words):
            self.words = tuple(words)
            return _MARK
        return words[0]

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = kind[0]
        if kind == "object":
            items = list(schema.get("properties", {}).items())[:_ITEMS_MAX]
            return {name: self.value(part, depth + 1) for name, part in items}
        if kind == "array":
            count = min(int(schema.get("minItems", 0)), _ITEMS_MAX)
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
        if kind == "string":
            return _PLAIN_TEXT[: schema.get("maxLength")]
        plain: dict[str, Any] = {"integer": int(schema.get("minimum", 0)), "number": float(schema.get("minimum", 0))}
        plain |= {"boolean": False, "null": None}
        if kind not in plain:
            raise SchemaError(f"schema has unknown type {kind!r}")
        return plain[kind]

    def _referred(self, reference: Any) -> Any:
        found: Any = self._root
        for part in str(reference).removeprefix("#/").split("/"):
            if not isinstance(found, Mapping) or part not in found:
                raise SchemaError(f"schema refers to {reference!r}, which it does not hold")
            found = found[part]
        return found
