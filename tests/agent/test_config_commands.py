from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from tandem_cli import tandem

from agent.commands.config import redacted, schema_of
from agent.settings import Settings, load
from training.settings import load_training

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_show_prints_yaml_that_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    shown = tandem("config", "show", "--set", "risk.cooldown_bars=7", "--set", "symbols=[SPY]")
    assert shown.code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(shown.out)
    assert load(file) == load(None, ["risk.cooldown_bars=7", "symbols=[SPY]"])


def test_show_as_json_says_the_same_as_yaml() -> None:
    assert tandem("config", "show", "--json").json == yaml.safe_load(tandem("config", "show").out)


def test_passwords_and_secrets_are_replaced() -> None:
    url = "postgresql://tandem:hunter2@db/tandem"
    content = {"ledger": {"url": url}, "strategy": {"params": {"api_key": "hunter2"}}, "training": {"token": "hunter2"}}
    settings = Settings.model_validate(content)
    text = str(redacted(settings))
    assert "hunter2" not in text
    assert "hunter2" not in tandem("config", "show", "--set", f"ledger.url={url}").out
    assert redacted(settings)["venue"]["key_id_file"] is None


def test_a_wrong_key_is_wrong_usage_with_a_suggestion() -> None:
    done = tandem("config", "show", "--set", "risk.cooldown_bar=7")
    assert done.code == 2
    assert "did you mean 'cooldown_bars'?" in done.err


def test_the_schema_accepts_the_defaults_and_refuses_unknown_keys() -> None:
    schema = tandem("config", "schema").json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(Settings().model_dump(mode="json"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"risk": {"cooldown_bar": 7}}, schema)


def settings_in(
    schema: dict[str, Any], section: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every setting of a schema by its whole name."""
    for name, content in section["properties"].items():
        referred = schema["$defs"].get(content.get("$ref", "").rpartition("/")[2], {})
        if "properties" in referred:
            yield from settings_in(schema, referred, f"{path}{name}.")
        else:
            yield path + name, content


def leaves(values: dict[str, Any], sections: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if path + name in sections:
            yield from leaves(value, sections, f"{path}{name}.")
        else:
            yield path + name, value


def test_the_schema_says_what_every_setting_means_and_what_it_is_without_being_set() -> None:
    schema = schema_of(Settings)
    found = dict(settings_in(schema, schema))
    sections = {name.rpartition(".")[0] for name in found} - {""}
    assert {name: content["default"] for name, content in found.items()} == dict(
        leaves(Settings().model_dump(mode="json"), sections)
    )
    assert [name for name, content in found.items() if not content.get("description")] == []
    assert [
        name for name, content in schema["$defs"].items() if "properties" in content and not content["description"]
    ] == []


@pytest.mark.parametrize(
    "content",
    [
        {"risk": {"cooldown_bars": -1}},
        {"risk": {"cooldown_bar": 1}},
        {"risk": 3},
        {"symbols": "BTC"},
        {"asset_class": "bonds"},
        {"exchange": {"start": 2024}},
        {"notifications": {"events": ["fils"]}},
        {"costs": {"fee_bps": "ten"}},
        {"nosuch": {}},
    ],
    ids=str,
)
def test_what_the_daemon_refuses_an_editor_marks_as_wrong(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema_of(Settings))


def test_check_finds_what_the_settings_name_and_is_not_there() -> None:
    done = tandem("config", "check", "--json", "--set", "strategy.name=momentm", "--set", "calendar=XNYZ")
    assert done.code == 1
    failures = {check["name"]: check["detail"] for check in done.json["checks"] if check["status"] == "fail"}
    assert "momentum" in failures["strategy"]
    assert "XNYZ" in failures["calendar"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_configuration_of_the_repository_loads_for_daemon_and_training(file: Path) -> None:
    settings = load(file)
    load_training(file)
    assert settings.ledger.url.startswith("sqlite:///var/")


class EditorsYaml(yaml.SafeLoader):
    """YAML as JSON knows it: a time is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base's own attribute
        first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_configuration_fits_the_schema(file: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(Settings))
    content = yaml.load(file.read_text(), Loader=EditorsYaml)  # noqa: S506 - a safe loader without times
    assert [error.message for error in validator.iter_errors(content)] == []


def test_the_configurations_are_those_that_the_manual_names() -> None:
    assert {file.stem for file in CONFIGS} == {"alpaca-paper", "demo", "equities", "exchange", "llm", "training"}


def test_no_two_daemons_of_the_repository_share_a_ledger() -> None:
    daemons = [file for file in CONFIGS if file.stem != "training"]
    urls = [load(file).ledger.url for file in daemons]
    assert len(set(urls)) == len(urls)


def test_configurations_of_recorded_bars_need_no_model() -> None:
    for name in ("exchange", "equities", "alpaca-paper"):
        done = tandem("config", "check", "--config", ROOT / "configs" / f"{name}.yaml")
        assert done.code == 0, done.out
