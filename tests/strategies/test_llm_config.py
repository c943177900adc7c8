from __future__ import annotations

import math
from typing import Any

import pytest

from strategies.llm import LanguageModelConfig, LanguageModelError


def config(**changes: Any) -> LanguageModelConfig:
    return LanguageModelConfig(**{"model": "tandem", "digest": "0" * 12} | changes)


@pytest.mark.parametrize(
    "host",
    [
        "http://127.0.0.1:11434",
        "http://127.8.9.1",
        "http://localhost:11434",
        "http://[::1]:11434",
        "https://models.example",
        "https://models.example:443/ollama",
        "http://Box.lan:11434",
    ],
)
def test_loopback_https_and_trusted_hosts_may_be_asked(host: str) -> None:
    assert config(host=host, trusted_hosts=("box.LAN",)).host == host


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("http://models.example", "plain http"),
        ("http://10.0.0.7:11434", "trusted_hosts"),
        ("http://0.0.0.0:11434", "plain http"),
        ("http://localhost.example", "plain http"),
        ("http://127.0.0.1.example", "plain http"),
        ("http://box.lan.example", "plain http"),
        ("http://127.0.0.1@evil.example", "credentials"),
        ("https://user:secret-word@models.example", "credentials"),
        ("127.0.0.1:11434", "address"),
        ("ftp://127.0.0.1", "address"),
        ("http://", "address"),
        ("http://127.0.0.1:99999", "address"),
        ("http://[::1", "address"),
        ("https://models.example?key=secret-word", "address"),
        ("", "address"),
    ],
)
def test_any_other_host_is_refused_where_the_model_is_configured(host: str, words: str) -> None:
    with pytest.raises(LanguageModelError, match=words) as refused:
        config(host=host, trusted_hosts=("box.lan",))
    assert "secret-word" not in str(refused.value)


@pytest.mark.parametrize("digest", ["", "0" * 11, "g" * 12, "0" * 65, "latest", "sha256:0123"])
def test_a_model_that_is_not_pinned_is_refused(digest: str) -> None:
    with pytest.raises(LanguageModelError, match=r"llm\.digest"):
        config(digest=digest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("mass_min", 1.1),
        ("deadline_s", 0.0),
        ("deadline_s", math.inf),
        ("reserve_s", -1.0),
        ("reserve_s", 0.0),
        ("concurrency", 0),
        ("concurrency", 65),
        ("breaker_failures", 0),
        ("num_ctx", 1),
        ("num_predict", 100_000),
        ("template_hash", "short"),
        ("model", ""),
        ("model", "a\nb"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(LanguageModelError, match=name):
        config(**{name: value})
