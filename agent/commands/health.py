"""`tandem health`: ask a running daemon's `/healthz`; for container health checks, which have no other client."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from agent.commands.errors import CommandError
from agent.commands.options import AsJson, ConfigFile, Overrides

ANSWER_BYTES_MAX = 100_000
_EVERY_INTERFACE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - where a server listens, not where we do


def health(
    url: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT[/PAGE] to ask instead.", show_default="the settings' health.host and port"),
    ] = None,
    ready: Annotated[bool, typer.Option("--ready", help="Ask /readyz: reconciled and deciding?")] = False,  # noqa: FBT002 - a flag on the command line is a named boolean
    timeout: Annotated[float, typer.Option(min=0.1, max=60, help="Longest wait for an answer, seconds.")] = 3.0,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002 - a flag on the command line is a named boolean
) -> None:
    """Ask a running daemon whether it makes progress; exit code 0 where it does, 1 where not or nobody answers."""
    host, port, page = _address(url) if url is not None else _configured(config, overrides)
    page = page or ("/readyz" if ready else "/healthz")
    status, answer = _asked(host, port, page, timeout)
    if as_json:
        typer.echo(json.dumps({"status": status, "answer": _content(answer)}))
    else:
        typer.echo(answer.strip())
    if status != HTTPStatus.OK:
        raise typer.Exit(1)


def _asked(host: str, port: int, page: str, timeout_s: float) -> tuple[int, str]:
    """Return status and body.

    Raises:
        CommandError: Nobody answered.
    """
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415 - paid by the command alone

    wire = HTTPConnection(host, port, timeout=timeout_s)
    try:
        wire.request("GET", page, headers={"Connection": "close"})
        response = wire.getresponse()
        return response.status, response.read(ANSWER_BYTES_MAX).decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise CommandError(
            f"no answer from {host}:{port} ({type(error).__name__}: {error}): is the daemon running, and is "
            "health.port what it listens on?"
        ) from error
    finally:
        wire.close()


def _configured(config: Any, overrides: list[str] | None) -> tuple[str, int, str]:
    from agent.settings import load  # noqa: PLC0415 - pydantic: not paid where the URL is given

    settings = load(config, overrides or []).health
    if not settings.port:
        raise CommandError(f"health.port is {settings.port}: set it to the port the daemon listens on, or give --url")
    return ("127.0.0.1" if settings.host in _EVERY_INTERFACE else settings.host), settings.port, ""


def _address(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise typer.BadParameter(f"{url!r}: {error}") from error
    if parts.scheme != "http" or not host or port is None:
        raise typer.BadParameter(f"{url!r} is not an address such as http://127.0.0.1:8730")
    return host, port, parts.path.rstrip("/")


def _content(answer: str) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return answer
