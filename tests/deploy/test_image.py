from __future__ import annotations

import re
import signal
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from dockerfile import included, read_dockerfile
from units import ROOT

from agent.cli import app
from agent.settings import DaemonSettings, load

DOCKERFILE = read_dockerfile(ROOT / "Dockerfile")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
IMAGES = ("daemon", "training")
OUR_SERVICES = ("daemon", "exchange")


def options_of(words: list[str]) -> tuple[set[str], set[str]]:
    """Return the options that a `tandem` command line uses, and those that the command has."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "get_command"):
            break
        command = command.get_command(None, word)
        assert command is not None, f"there is no command {word}"
    has = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return {word for word in words if word.startswith("--")}, has


# ---- the image ------------------------------------------------------------------------------------------


def test_everything_that_is_copied_exists_and_is_in_the_build_context() -> None:
    context = included(ROOT / ".dockerignore")
    for stage in DOCKERFILE.stages.values():
        for copy in (i for i in stage.instructions if i.name == "COPY" and "from" not in i.options):
            for source in copy.words[:-1]:
                path = source.removeprefix("./")
                assert (ROOT / path).exists(), f"line {copy.line}: {source}"
                assert path in context, f"line {copy.line}: {source} is left out by .dockerignore"


def test_the_build_context_holds_nothing_that_is_not_copied() -> None:
    copied = {
        source.removeprefix("./")
        for stage in DOCKERFILE.stages.values()
        for copy in stage.instructions
        if copy.name == "COPY" and "from" not in copy.options
        for source in copy.words[:-1]
    }
    assert copied == set(included(ROOT / ".dockerignore"))


def test_every_package_of_the_wheel_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(included(ROOT / ".dockerignore"))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_who_is_not_root_and_can_be_told_by_number(image: str) -> None:
    user = next(i for stage in reversed(DOCKERFILE.chain(image)) if (i := stage.last("USER")) is not None)
    uid, _, gid = user.text.partition(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000


@pytest.mark.parametrize("image", IMAGES)
def test_no_code_is_copied_for_the_user_to_write(image: str) -> None:
    assert [i for stage in DOCKERFILE.chain(image) for i in stage.instructions if "chown" in i.options] == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(image: str) -> None:
    labels = DOCKERFILE.stages[image].last("LABEL")
    assert labels is not None
    titles = {key.removeprefix("org.opencontainers.image.") for key in labels.pairs}
    assert titles >= {"title", "description", "licenses"}


def test_the_image_that_is_built_by_default_is_the_daemons() -> None:
    assert list(DOCKERFILE.stages)[-1] == "daemon"


def test_the_daemons_image_is_built_without_what_trains() -> None:
    steps = " ".join(i.text for name in DOCKERFILE.needed("daemon") for i in DOCKERFILE.stages[name].instructions)
    assert "[train]" not in steps
    assert "torch" not in steps


def test_everything_that_is_installed_from_an_index_is_pinned() -> None:
    for stage in DOCKERFILE.stages.values():
        for step in (i.text for i in stage.instructions if i.name == "RUN"):
            for command in re.split(r"&&|;", step):
                if " install " in f" {command} " and "pip" in command:
                    assert "--constraint constraints.txt" in command, command


def test_the_daemon_is_stopped_by_the_signal_that_it_handles() -> None:
    stop = next(i for stage in DOCKERFILE.chain("daemon") if (i := stage.last("STOPSIGNAL")) is not None)
    assert stop.text == signal.SIGTERM.name


@pytest.mark.parametrize("name", ["CMD", "HEALTHCHECK"])
def test_the_image_starts_commands_that_exist(name: str) -> None:
    found = DOCKERFILE.stages["daemon"].last(name)
    assert found is not None
    used, has = options_of([word for word in found.words if word != "tandem"])
    assert used <= has


def test_the_health_check_asks_where_the_images_own_configuration_listens() -> None:
    check = DOCKERFILE.stages["daemon"].last("HEALTHCHECK")
    assert check is not None
    assert check.words[-1] == f"http://127.0.0.1:{load(ROOT / 'deploy' / 'container.yaml').health.port}"


def test_what_the_images_configuration_writes_lies_in_the_volume() -> None:
    settings = load(ROOT / "deploy" / "container.yaml")
    places = [settings.exchange.books, settings.daemon.bar_store, Path(settings.ledger.url.removeprefix("sqlite:///"))]
    assert [place for place in places if place is None or place.is_absolute()] == []
    runtime = DOCKERFILE.stages["runtime"]
    workdir, volume = runtime.last("WORKDIR"), runtime.last("VOLUME")
    assert workdir is not None
    assert volume is not None
    assert workdir.text == volume.text


# ---- compose --------------------------------------------------------------------------------------------


def test_only_loopback_is_published() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", list(COMPOSE["services"]))
def test_every_service_is_watched_limited_and_its_log_rotated(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@pytest.mark.parametrize("name", OUR_SERVICES)
def test_our_services_can_write_their_volume_alone_and_gain_no_privilege(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    runtime = DOCKERFILE.stages["runtime"].last("VOLUME")
    assert runtime is not None
    assert writable == [f"state:{runtime.text}"]


@pytest.mark.parametrize("name", list(COMPOSE["services"]))
def test_what_a_service_depends_on_exists_and_has_a_health_to_wait_for(name: str) -> None:
    for other, about in COMPOSE["services"][name].get("depends_on", {}).items():
        assert about["condition"] != "service_healthy" or "healthcheck" in COMPOSE["services"][other]


@pytest.mark.parametrize("name", OUR_SERVICES)
def test_our_services_start_and_ask_commands_that_exist(name: str) -> None:
    service = COMPOSE["services"][name]
    for words in (service.get("command"), service["healthcheck"]["test"][2:]):
        if words is not None:
            used, has = options_of(words)
            assert used <= has


def test_plain_http_stays_on_loopback_because_the_services_share_one_network() -> None:
    services = COMPOSE["services"]
    assert {name: services[name].get("network_mode") for name in ("daemon", "ollama")} == {
        "daemon": "service:exchange",
        "ollama": "service:exchange",
    }
    assert services["daemon"]["environment"]["TANDEM__VENUE__URL"].startswith("http://127.0.0.1:")


def test_the_daemons_settings_by_environment_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in COMPOSE["services"]["daemon"]["environment"].items():
        monkeypatch.setenv(key, value)
    settings = load(ROOT / "deploy" / "container.yaml")
    assert settings.venue.url == "http://127.0.0.1:8790"
    assert str(settings.health.port) in COMPOSE["services"]["exchange"]["ports"][0].rpartition(":")[2]


def test_no_secret_stands_in_the_compose_file() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    assert re.findall(r"(?i)(?:key|secret|token|password)\w*:\s+[A-Za-z0-9+]{16,}", text) == []
    assert "_FILE: /run/secrets/" in text


def test_a_container_is_given_the_time_to_stop_that_the_daemon_may_take() -> None:
    longest = max(limit.le for limit in DaemonSettings.model_fields["stop_timeout_s"].metadata if hasattr(limit, "le"))
    assert int(COMPOSE["services"]["daemon"]["stop_grace_period"].removesuffix("s")) > longest


def test_nothing_that_is_deployed_is_executable_or_writable_for_others() -> None:
    loose = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH | stat.S_IWGRP | stat.S_IWOTH
    assert [path.name for path in (ROOT / "deploy").iterdir() if path.is_file() and path.stat().st_mode & loose] == []
