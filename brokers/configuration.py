"""How settings are read: a YAML file, environment variables, `--set` overrides; one clear error for all of them.

Later sources win: file, then `TANDEM__SECTION__KEY`, then `--set section.key=value`. Unknown keys are
errors that suggest the right name. The models themselves live where their sections are used
(`agent.settings`, `training.settings`).
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brokers.costs import HALF_SPREAD_BPS_MAX, CostModel

ENV_PREFIX = "TANDEM__"
FAULTS_SHOWN_MAX = 12
"""Faults that one error lists; the rest are counted."""

_REMEDIES = {
    "bool_parsing": "write true or false",
    "dict_type": "write 'key: value' lines below it",
    "model_type": "it is a section: write 'key: value' lines below it",
    "tuple_type": "write a list, such as [A, B]",
}
"""What to write instead, where pydantic's own words do not say it."""

Model = TypeVar("Model", bound=BaseModel)


class ConfigurationError(Exception):
    """Settings cannot be used; the message names each key, its value and the remedy."""


class Section(BaseModel):
    """Base of every settings section: unknown keys are errors, numbers are finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class CostSettings(Section):
    """The cost model's four numbers (`costs` in every configuration file)."""

    fee_bps: float = Field(10.0, ge=0, lt=10_000)
    """Commission on traded notional, per side, basis points."""
    half_spread_bps: float = Field(2.0, ge=0, le=HALF_SPREAD_BPS_MAX)
    """Half of the bid-ask spread, basis points of the price; paid by orders that take."""
    impact: float = Field(0.5, ge=0)
    """Y of the square-root law of size impact, dimensionless; 0 for none. No impact exceeds half the price."""
    latency_bars: int = Field(1, ge=1)
    """Bars between a decision and its earliest fill; 1 = the next bar's open."""

    def model(self) -> CostModel:
        """Return the cost model that training, replay and the exchange share."""
        return CostModel(
            fee_bps=self.fee_bps,
            half_spread_bps=self.half_spread_bps,
            impact=self.impact,
            latency_bars=self.latency_bars,
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for a near name, otherwise the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f", did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigurationError: The file is missing, not readable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"configuration file {path} cannot be read ({error.strerror or error}): name a YAML file that this user "
            "may read; examples are in configs/"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"configuration file {path} is not UTF-8 text ({error.reason})") from error
    try:
        content = _parsed(text, name=str(path))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"configuration file {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"configuration file {path} holds a {type(content).__name__}: write 'section:' with 'key: value' lines"
        )
    return {str(key): value for key, value in content.items()}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key written twice: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - the base's signature
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here a second time: keep one of them", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parsed(text: str, *, name: str) -> Any:
    """Read YAML text; `name` is what its errors call it."""
    loader = _Loader(text)
    try:
        loader.name = name
        return loader.get_single_data()
    finally:
        loader.dispose()


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], *, from_environment: bool = False
) -> dict[str, Any]:
    """Return `content` with each `section.key=value` set; values are read as YAML.

    Args:
        content: Settings so far.
        overrides: What to set, in order.
        from_environment: True where they were environment variables: errors then name the variable.

    Raises:
        ConfigurationError: An override is not of that form.
    """
    merged = _copied(content)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        where = _variable(keys) if from_environment else f"--set {override!r}"
        if not separator or not all(keys):
            raise ConfigurationError(f"{where} is not of the form section.key=value")
        try:
            value = _parsed(text, name="the value")
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{where}: the value is not valid YAML: {error}") from error
        _put(merged, keys, value, where=where)
    return merged


def environment_overrides(environ: Mapping[str, str]) -> list[str]:
    """Return the `TANDEM__SECTION__KEY` variables as `section.key=value` overrides, sorted by name."""
    return [
        f"{name[len(ENV_PREFIX) :].lower().replace('__', '.')}={value}"
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIX)
    ]


def load_settings(
    model: type[Model], file: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Model:
    """Read, merge and validate settings.

    Raises:
        ConfigurationError: With one line for each fault.
    """
    variables = environment_overrides(os.environ if environ is None else environ)
    content = {} if file is None else load_yaml(file)
    content = apply_overrides(content, variables, from_environment=True)
    content = apply_overrides(content, overrides)
    origins = {_keys(variable): _variable(_keys(variable)) for variable in variables}
    origins |= {_keys(override): f"--set {'.'.join(_keys(override))}" for override in overrides}
    return validate(model, content, source=str(file) if file is not None else "the settings", origins=origins)


def validate(
    model: type[Model],
    content: Mapping[str, Any],
    *,
    source: str,
    origins: Mapping[tuple[str, ...], str] | None = None,
) -> Model:
    """Validate a mapping against a settings model.

    Args:
        model: The settings.
        content: What was read.
        source: What errors call it: the file.
        origins: Where a key that is not of `source` came from, by its parts.

    Raises:
        ConfigurationError: With one line for each fault.
    """
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_explain(model, dict(fault), origins or {}) for fault in faults[:FAULTS_SHOWN_MAX]]
        if len(faults) > FAULTS_SHOWN_MAX:
            lines.append(f"and {len(faults) - FAULTS_SHOWN_MAX} more")
        raise ConfigurationError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _keys(override: str) -> tuple[str, ...]:
    return tuple(override.partition("=")[0].strip().split("."))


def _variable(keys: Sequence[str]) -> str:
    return f"environment variable {ENV_PREFIX}{'__'.join(keys).upper()}"


def _explain(model: type[BaseModel], fault: dict[str, Any], origins: Mapping[tuple[str, ...], str]) -> str:
    keys = [str(part) for part in fault["loc"]]
    name = ".".join(keys)
    origin = _origin(keys, origins)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {name!r}{origin}{did_you_mean(keys[-1], _known_keys(model, keys[:-1]))}"
    if fault["type"] == "missing":
        return f"{name} is missing: set it in the file or with --set {name}=VALUE"
    message = _REMEDIES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    if not keys:
        return str(message)
    return f"{name} = {_shown(fault.get('input'))}{origin}: {message}"


def _shown(value: Any) -> str:
    """Return a value as text of bounded length, without writing out all of a large one."""
    return reprlib.repr(value) if isinstance(value, list | tuple | dict | set) else repr(value)[:80]


def _origin(keys: Sequence[str], origins: Mapping[tuple[str, ...], str]) -> str:
    """Return " (from ...)" where the key was not set by the file."""
    found = ""
    for path, origin in origins.items():
        shared = min(len(path), len(keys))
        if keys and tuple(keys[:shared]) == path[:shared]:
            found = f" (from {origin})"
    return found


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: type[BaseModel] = model
    for key in path:
        field = current.model_fields.get(key)
        nested = _model_in(field.annotation) if field is not None else None
        if nested is None:
            return []
        current = nested
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _copied(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in content.items()}


def _put(content: dict[str, Any], keys: Sequence[str], value: Any, *, where: str) -> None:
    target = content
    for key in keys[:-1]:
        nested = target.setdefault(key, {})
        if nested is None:
            nested = target[key] = {}
        if not isinstance(nested, dict):
            raise ConfigurationError(f"{where}: {key!r} is a value, not a section")
        target = nested
    target[keys[-1]] = value
