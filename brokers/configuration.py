"""How settings are read: a YAML file, environment variables, `--set` overrides; one clear error for all of them.

Later sources win: file, then `TANDEM__SECTION__KEY`, then `--set section.key=value`. Unknown keys are
errors that suggest the right name. The models themselves live where their sections are used
(`agent.settings`, `training.settings`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from brokers.costs import CostModel

ENV_PREFIX = "TANDEM__"

Model = TypeVar("Model", bound=BaseModel)


class ConfigurationError(Exception):
    """Settings cannot be used; the message names each key, its value and the remedy."""


class Section(BaseModel):
    """Base of every settings section: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class CostSettings(Section):
    """The cost model's four numbers (`costs` in every configuration file)."""

    fee_bps: float = 10.0
    """Commission on traded notional, per side, basis points."""
    half_spread_bps: float = 2.0
    """Half of the bid-ask spread, basis points of the price; paid by orders that take."""
    impact: float = 0.5
    """Y of the square-root law of size impact, dimensionless; 0 for none."""
    latency_bars: int = 1
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
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"configuration file {path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"configuration file {path} holds a {type(content).__name__}: write 'section:' with 'key: value' lines"
        )
    return {str(key): value for key, value in content.items()}


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `content` with each `section.key=value` set; values are read as YAML.

    Raises:
        ConfigurationError: An override is not of that form.
    """
    merged = _copied(content)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigurationError(f"--set {override!r} is not of the form section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {override!r}: the value is not valid YAML: {error}") from error
        _put(merged, keys, value, where=f"--set {override!r}")
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
    content = {} if file is None else load_yaml(file)
    content = apply_overrides(content, environment_overrides(os.environ if environ is None else environ))
    content = apply_overrides(content, overrides)
    return validate(model, content, source=str(file) if file is not None else "the settings")


def validate(model: type[Model], content: Mapping[str, Any], *, source: str) -> Model:
    """Validate a mapping against a settings model.

    Raises:
        ConfigurationError: With one line for each fault.
    """
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        lines = [_explain(model, dict(fault)) for fault in error.errors(include_url=False, include_context=False)]
        raise ConfigurationError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(model: type[BaseModel], fault: dict[str, Any]) -> str:
    keys = [str(part) for part in fault["loc"]]
    name = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {name!r}{did_you_mean(keys[-1], _known_keys(model, keys[:-1]))}"
    if fault["type"] == "missing":
        return f"{name} is missing: set it in the file or with --set {name}=VALUE"
    shown = repr(fault.get("input"))
    return f"{name} = {shown[:80]}: {fault['msg']}"


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
