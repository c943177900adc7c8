"""The sections of docs/commands.md, made from the command line itself.

`python tests/docs/commands_reference.py --write` renews them; a test compares them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
BEGIN = "<!-- commands: made by tests/docs/commands_reference.py -->\n"
END = "<!-- end of commands -->\n"


def root_command() -> Any:
    """Return the root of the command line as a Click command (Typer's own Click)."""
    import typer  # noqa: PLC0415  # the test that needs it says so by asking

    from agent import cli  # noqa: PLC0415  # same

    for name in ("app", "root", "cli"):
        found = getattr(cli, name, None)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        if hasattr(found, "list_commands"):
            return found
    raise LookupError("agent.cli has neither a Typer nor a Click group named app, root or cli")


def commands(command: Any, path: str = "tandem", parent: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield (full name, command) of every visible command that is not a group, in the order of the help."""
    context = command.context_class(command, info_name=path.rpartition(" ")[2], parent=parent)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is None:
            raise LookupError(f"{path} lists {name!r} and does not have it")
        if not child.hidden:
            yield from commands(child, f"{path} {name}", context)


def sections(root: Any) -> str:
    """Return one section for each command: what it does, and its arguments and options."""
    return "\n" + "\n".join(_section(path, command) for path, command in commands(root))


def documented(page: str) -> str:
    """Return the sections as they stand in the page."""
    return page.partition(BEGIN)[2].partition(END)[0]


def _section(path: str, command: Any) -> str:
    visible = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    lines = [f"## `{path}`", "", _prose(command.help or ""), ""]
    if visible:
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        lines += [f"| {_names(p)} | {_default(p)} | {_cell(getattr(p, 'help', '') or '')} |" for p in visible]
        lines.append("")
    return "\n".join(lines)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} (repeatable)" if parameter.multiple else names


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or callable(value) or value in ((), []):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _prose(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.replace("\f", "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Compare the page with the command line, or renew it with --write; exit code 1 where they differ."""
    page = PAGE.read_text(encoding="utf-8")
    renewed = page.replace(BEGIN + documented(page) + END, BEGIN + sections(root_command()) + END)
    if renewed == page:
        return 0
    if "--write" in sys.argv[1:]:
        PAGE.write_text(renewed, encoding="utf-8")
        return 0
    sys.stderr.write(f"{PAGE.name} differs from the command line: run {Path(__file__).name} --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
