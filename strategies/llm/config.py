"""Settings of the language model, and which hosts it may be asked on."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from strategies.answers import DIGEST_CHARACTERS
from strategies.prompt import PROMPT_VERSION

DEFAULT_HOST: Final = "http://127.0.0.1:11434"
TOP_LOGPROBS: Final = 20
"""Alternatives asked for at each token: the most that the server gives."""

_DIGEST = re.compile(rf"(sha256:)?[0-9a-fA-F]{{{DIGEST_CHARACTERS},64}}")
_HASH = re.compile(r"([0-9a-f]{64})?")


class LanguageModelError(ValueError):
    """Settings that a language model cannot be asked with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModelConfig:
    """What is asked, where, and how long it is waited for.

    Args:
        model: Name of the model on the server, with or without tag.
        digest: Of the very model that was tuned and tested, as `/api/tags` tells it; its first 12 digits are enough.
        host: Address of Ollama: loopback, https, or plain http to one of `trusted_hosts`.
        trusted_hosts: Names of machines to which plain http may go.
        prompt_version: `PROMPT_VERSION` that the model was tuned on.
        template_hash: `Template.hash` that it was tuned on; empty to leave it unchecked.
        shorts: True where SELL means short; else it means flat.
        temperature: Calibration: probabilities p become p^(1/temperature), normalised; fitted on held-out decisions.
        mass_min: Least probability that the three actions must have together.
        tie: The position is kept where the best two targets are so close in probability.
        deadline_s: Longest time for all answers of one close.
        reserve_s: Kept of the daemon's own decision deadline for what comes after the answers. Never nothing: a mind
            that answers with it at the very deadline would lose its answer too.
        connect_s: Longest time to connect.
        warm_up_s: Longest time for loading the model.
        concurrency: Requests on the wire at once.
        breaker_failures: Failures in a row after which the server is left alone.
        breaker_pause_s: How long it is left alone, before one request probes it. Also the least time between two
            attempts at loading the model.
        seed: Sent with every request.
        num_ctx: Context of the model, in tokens. The same in every request: a change makes the server load it again.
        num_predict: Most tokens of an answer.

    Raises:
        LanguageModelError: A value out of bounds, or a host that must not be asked.
    """

    model: str
    digest: str
    host: str = DEFAULT_HOST
    trusted_hosts: tuple[str, ...] = ()
    prompt_version: str = PROMPT_VERSION
    template_hash: str = ""
    shorts: bool = False
    temperature: float = 1.0
    mass_min: float = 0.2
    tie: float = 1e-3
    deadline_s: float = 8.0
    reserve_s: float = 2.0
    connect_s: float = 1.0
    warm_up_s: float = 600.0
    concurrency: int = 8
    breaker_failures: int = 3
    breaker_pause_s: float = 60.0
    seed: int = 0
    num_ctx: int = 2_048
    num_predict: int = 96

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise LanguageModelError(f"llm.{name} is {value}: give a number from {low:g} to {high:g}")
        if not self.model or not self.model.isprintable() or len(self.model) > 200:
            raise LanguageModelError(f"llm.model is {self.model[:40]!r}: name the model as `ollama list` shows it")
        if not _DIGEST.fullmatch(self.digest):
            raise LanguageModelError(
                f"llm.digest is {self.digest[:80]!r}: give at least {DIGEST_CHARACTERS} of its hexadecimal digits, as "
                "`ollama list` shows them: an unpinned model could be any other"
            )
        if not _HASH.fullmatch(self.template_hash):
            raise LanguageModelError(f"llm.template_hash is {self.template_hash[:80]!r}: give all 64 digits, or none")
        check_host(self.host, self.trusted_hosts)

    @property
    def options(self) -> dict[str, float]:
        """Model options of every request, always the same.

        The penalty on repeated words is off: it would bend the choice between words that stand in the prompt.
        """
        return {
            "temperature": 0.0,
            "seed": self.seed,
            "num_ctx": self.num_ctx,
            "num_predict": self.num_predict,
            "repeat_penalty": 1.0,
        }


_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "temperature": (0.05, 20.0),
    "mass_min": (0.0, 1.0),
    "tie": (0.0, 0.5),
    "deadline_s": (0.05, 600.0),
    "reserve_s": (0.05, 60.0),
    "connect_s": (0.01, 60.0),
    "warm_up_s": (0.05, 3_600.0),
    "concurrency": (1, 64),
    "breaker_failures": (1, 1_000),
    "breaker_pause_s": (0.0, 86_400.0),
    "seed": (0, 2**31 - 1),
    "num_ctx": (256, 32_768),
    "num_predict": (16, 512),
}


def check_host(host: str, trusted_hosts: Collection[str]) -> None:
    """Refuse an address to which prompts must not go.

    Raises:
        LanguageModelError: Not an address, one with credentials in it, or plain http to a machine not trusted.
    """
    try:
        parts = urlsplit(host)
        name, _ = parts.hostname, parts.port
    except ValueError as error:
        raise LanguageModelError(f"llm.host is no address ({error}): give one like {DEFAULT_HOST}") from error
    if parts.scheme not in {"http", "https"} or not name or parts.query or parts.fragment:
        raise LanguageModelError(f"llm.host is no http address: give one like {DEFAULT_HOST}")
    if "@" in parts.netloc:
        raise LanguageModelError(f"llm.host holds credentials: give the bare address of {name}, they are never sent")
    if parts.scheme == "http" and not _is_loopback(name) and name not in {one.lower() for one in trusted_hosts}:
        raise LanguageModelError(
            f"llm.host {name!r} is another machine, and plain http can be read on the way: use https, or add "
            "the name to llm.trusted_hosts"
        )


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
