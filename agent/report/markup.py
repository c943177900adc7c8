"""HTML that cannot be broken by what it shows: text is escaped unless it was made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_VOID = frozenset({"meta", "br", "rect", "path", "line", "circle", "use"})


class Markup(str):
    """Finished HTML, made by `tag` or `joined`; any other string is text."""

    __slots__ = ()


Content = str | None
"""A child of an element: `Markup` goes in as it is, other text escaped, None not at all."""


def tag(name: str, *children: Content, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Attribute names: a trailing underscore is dropped (`class_`), others become hyphens (`aria_label`). True stands
    for an attribute without a value, None and False for none.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(label if value is True else f'{label}="{escape(str(value), quote=True)}"')
    opened = f"<{' '.join(parts)}>"
    if name in _VOID and not children:
        return Markup(opened[:-1] + "/>")
    return Markup(f"{opened}{joined(children)}</{name}>")


def joined(children: Iterable[Content]) -> Markup:
    """Return several children as one."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c, quote=False) for c in children if c is not None))


def data_block(value: Mapping[str, Any]) -> Markup:
    """Return JSON for a data block within a page: no character in it can end the block or begin a tag."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
