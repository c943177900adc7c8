"""`tandem config`: the settings in force, their schema, and whether a file can be used."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import typer

from agent.commands.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agent.settings import Settings

app = typer.Typer(name="config", help="Settings: show, schema, check.", no_args_is_help=True)


@app.command("show")
def show(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Print every setting in force: defaults, file, environment and --set together; secrets are replaced."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.settings import load  # noqa: PLC0415 - as above

    content = redacted(load(config, overrides or []))
    if as_json:
        print_json(content)
        return
    import yaml  # noqa: PLC0415 - as above

    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a configuration file, for editors."""
    from agent.commands.screen import print_json  # noqa: PLC0415 - paid by the command alone
    from agent.settings import Settings  # noqa: PLC0415 - as above

    print_json(schema_of(Settings))


@app.command("check")
def check(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line is a named boolean
    """Read the settings and check what they name: calendar, strategy, bars, hosts. Exit code 1 where one is wrong."""
    from agent.commands.checks import check_settings  # noqa: PLC0415 - paid by the command alone
    from agent.commands.doctor import tell  # noqa: PLC0415 - as above
    from agent.settings import load  # noqa: PLC0415 - as above

    tell(check_settings(load(config, overrides or [])), as_json=as_json)


def redacted(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values without passwords in URLs and without values under secret-looking names."""
    from agent.logs import REDACTED, Redactor, is_secret_name  # noqa: PLC0415 - structlog

    redactor = Redactor()

    def clean(name: str, value: Any) -> Any:
        if value is not None and is_secret_name(name):
            return REDACTED
        if isinstance(value, dict):
            return {key: clean(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(name, item) for item in value]
        return redactor.text(value) if isinstance(value, str) else value

    return {key: clean(key, value) for key, value in settings.model_dump(mode="json").items()}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) with each setting's default, and its meaning from the model's source."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    content["title"] = "Tandem's settings"
    for section in _sections(model):
        described = content if section is model else content["$defs"][section.__name__]
        for name, meaning in _meanings(section).items():
            described["properties"][name].setdefault("description", meaning)
        for name, field in section.model_fields.items():
            if field.default_factory is not None:
                default = field.get_default(call_default_factory=True, validated_data={})
                described["properties"][name].setdefault("default", default)
    return content


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel  # noqa: PLC0415 - paid by the command alone

    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _sections(field.annotation)


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring under each field."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found: dict[str, str] = {}
    body = node.body if isinstance(node, ast.ClassDef) else []
    for field, after in pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[field.target.id] = " ".join(after.value.value.split())
    return found
