"""The tables of settings in docs/configuration.md, made from the settings model itself.

`python tests/docs/settings_reference.py --write` renews them; a test compares them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
BEGIN = "<!-- settings: made by tests/docs/settings_reference.py -->\n"
END = "<!-- end of settings -->\n"


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    type: str
    default: str
    meaning: str


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a model and of its sections, in their order."""
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            yield from settings_of(section, f"{prefix}{name}.")
        else:
            yield Setting(
                prefix + name,
                _type(field.annotation, field),
                _default(field),
                field.description or meanings.get(name, ""),
            )


def table(model: type[BaseModel]) -> str:
    """Return one Markdown table for each section."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings_of(model):
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    blocks = []
    for section, settings in sections.items():
        title = f"### `{section}`" if section else "### At the top"
        rows = [f"| `{s.name}` | {s.type} | {s.default} | {_cell(s.meaning)} |" for s in settings]
        blocks.append("\n".join([title, "", "| setting | type | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n" + "\n\n".join(blocks) + "\n\n"


def documented(page: str) -> str:
    """Return the tables as they stand in the page."""
    return page.partition(BEGIN)[2].partition(END)[0]


def _meanings(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the docstring under each attribute, inherited ones included."""
    found: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if not issubclass(ancestor, BaseModel) or ancestor is BaseModel:
            continue
        (class_node,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(class_node, ast.ClassDef)
        for node, after in zip(class_node.body, class_node.body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[node.target.id] = inspect.cleandoc(after.value.value)
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    Decimal: "decimal",
    bool: "true or false",
    Path: "path",
    datetime: "time",
    NoneType: "null",
}


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        name = " or ".join(_type(member) for member in get_args(annotation))
    elif origin is Literal:
        name = ", ".join(f"`{value}`" for value in get_args(annotation))
    elif origin in (tuple, list):
        name = f"list of {_type(get_args(annotation)[0])}"
    elif origin is dict:
        name = "mapping"
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        name = ", ".join(f"`{member.value}`" for member in annotation)
    else:
        name = _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{name}{_bounds(field)}" if field is not None else name


def _bounds(field: FieldInfo) -> str:
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            limit = getattr(constraint, attribute, None)
            if limit is not None:
                bounds.append(f"{sign} {limit:,}".replace(",", " "))
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str | PurePath):
        return f'`"{value}"`'
    if isinstance(value, tuple | list):
        return "`[]`" if not value else f"`{list(value)}`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("|", "\\|")


def main() -> int:
    """Compare the page with the model, or renew it with --write; exit code 1 where they differ."""
    from agent.settings import Settings  # noqa: PLC0415  # so that the tables of any model can be tested without it

    page = PAGE.read_text(encoding="utf-8")
    renewed = page.replace(BEGIN + documented(page) + END, BEGIN + table(Settings) + END)
    if renewed == page:
        return 0
    if "--write" in sys.argv[1:]:
        PAGE.write_text(renewed, encoding="utf-8")
        return 0
    sys.stderr.write(f"{PAGE.name} differs from the settings: run {Path(__file__).name} --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
