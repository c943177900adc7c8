"""What the shell completes beyond the names of commands and options: settings and strategies."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


def setting(incomplete: str) -> list[str]:
    """Return `section.key=default` of every setting that begins so; lists and mappings are left to be written."""
    from agent.settings import Settings  # noqa: PLC0415 - pydantic, only when a setting is completed

    return [candidate for candidate in _settings(Settings, "") if candidate.startswith(incomplete)]


def strategy(incomplete: str) -> list[str]:
    """Return the strategies' names that begin so."""
    from strategies.baselines import BASELINES  # noqa: PLC0415 - NumPy, only when a strategy is completed

    return [name for name in ("dqn", "llm", "fused", *BASELINES) if name.startswith(incomplete)]


def _settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    from pydantic import BaseModel  # noqa: PLC0415 - as above

    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={_spelled(field.get_default(call_default_factory=True, validated_data={}))}"


def _spelled(value: object) -> str:
    """Return a default as it is written after `--set key=`; nothing where a shell would take it apart."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value.value if isinstance(value, Enum) else value)
    is_plain = isinstance(value, str | int | float | Path | Enum) or type(value).__name__ == "Decimal"
    return text if is_plain and not any(sign.isspace() or sign in "'\"[]{}$&;" for sign in text) else ""
