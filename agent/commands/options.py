"""Options that every command shares, so that they are spelled and explained in one way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from agent.commands import complete

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML settings file.", show_default="defaults")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, over the file; repeatable.", autocompletion=complete.setting),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def strategy_overrides(name: str | None) -> list[str]:
    """Return what `--strategy NAME` sets: it wins over the file's name and over its mode, which says the same."""
    if name is None:
        return []
    return [f"strategy.name={json.dumps(name)}", "strategy.mode=null"]
