"""Where the adapter connects, with which limits, and the two guards that come first: hosts, then secrets.

A live trading host is refused before a key is read. Keys come from the environment or from files, never
from the settings themselves, and live in `SecretStr` so that neither repr nor a log shows them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from brokers.domain import AssetClass, AuthError
from brokers.protocol import Capabilities

PAPER_URL = "https://paper-api.alpaca.markets"
DATA_URL = "https://data.alpaca.markets"
KEY_ID_VARIABLE = "APCA_API_KEY_ID"
SECRET_KEY_VARIABLE = "APCA_API_SECRET_KEY"  # noqa: S105  # the variable's name, not its value

_PAPER_HOSTS = frozenset({"paper-api.alpaca.markets"})
_DATA_HOSTS = frozenset({"data.alpaca.markets"})
_EXCHANGE_KEY = "exchange"


@dataclass(frozen=True, slots=True)
class AlpacaSettings:
    """One venue that speaks Alpaca's REST.

    Args:
        kind: `alpaca` for Alpaca paper, `exchange` for the built-in exchange process.
        url: Scheme, host and port of the trading side; None for Alpaca paper (`exchange` has no default).
        data_url: The same of the data side; None for Alpaca's data host, or `url` for the exchange.
        key_id_file: File that holds the key id; otherwise the environment variable APCA_API_KEY_ID.
        secret_key_file: File that holds the secret; otherwise the environment variable APCA_API_SECRET_KEY.
            The built-in exchange is never sent the keys of the environment.
        connect_timeout_s: Longest wait for a connection.
        read_timeout_s: Longest wait for the first byte of an answer, and for its whole body.
        outage_s_max: How long a question is repeated while it gets no usable answer.
        requests_per_minute: Alpaca's limit; the exchange has none.
        connections_max: Most simultaneous connections.
        answer_bytes_max: Largest answer that is read.
        pages_max: Most pages of one question.
        feed: Alpaca's stock feed, `iex` or `sip`.
        crypto_fee_bps: Taker fee of Alpaca crypto. The venue takes it from the received asset and reports no
            fee on the fill, so a fill without one carries this estimate in quote currency.
        order_history_days: Oldest submission that `orders_since` looks for; Alpaca ends GTC orders after 90 days.
        shorting: True where the account may hold negative positions.
    """

    kind: Literal["alpaca", "exchange"] = "alpaca"
    url: str | None = None
    data_url: str | None = None
    key_id_file: Path | None = None
    secret_key_file: Path | None = None
    connect_timeout_s: float = 3.05
    read_timeout_s: float = 10.0
    outage_s_max: float = 15.0
    requests_per_minute: int = 200
    connections_max: int = 4
    answer_bytes_max: int = 64 * 1024 * 1024
    pages_max: int = 1_000
    feed: str = "iex"
    crypto_fee_bps: float = 25.0
    order_history_days: float = 91.0
    shorting: bool = True

    def __post_init__(self) -> None:
        """Refuse hosts that may not be spoken to.

        Raises:
            AuthError: A live trading host, an unknown host, or plain HTTP beyond loopback.
        """
        check_host(self.trading_url, _PAPER_HOSTS)
        check_host(self.market_data_url, _DATA_HOSTS)

    @property
    def trading_url(self) -> str:
        """Base URL of orders and account, without a path."""
        if self.url is not None:
            return self.url.rstrip("/")
        if self.kind == "exchange":
            raise AuthError("the exchange has no default url: name the loopback address that its process listens on")
        return PAPER_URL

    @property
    def market_data_url(self) -> str:
        """Base URL of bars and quotes, without a path."""
        if self.data_url is not None:
            return self.data_url.rstrip("/")
        return self.trading_url if self.kind == "exchange" or is_loopback(self.trading_url) else DATA_URL

    @property
    def capabilities(self) -> Capabilities:
        """What the venue can do."""
        if self.kind == "exchange":
            return Capabilities(
                name="exchange",
                brackets=frozenset(AssetClass),
                fractional=True,
                shorting=self.shorting,
                stepped=True,
                requests_per_minute=None,
                lookup_window_s=2.0,
            )
        return Capabilities(
            name="alpaca",
            brackets=frozenset({AssetClass.EQUITY}),
            fractional=True,
            shorting=self.shorting,
            stepped=False,
            requests_per_minute=self.requests_per_minute,
            lookup_window_s=60.0,
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key id and secret; both hidden in repr."""

    key_id: SecretStr
    secret_key: SecretStr

    def scrub(self, text: str) -> str:
        """Return `text` with every occurrence of a key replaced, for errors and logs."""
        for secret in (self.secret_key, self.key_id):
            value = secret.get_secret_value()
            if value and value != _EXCHANGE_KEY:
                text = text.replace(value, "***")
        return text


def is_loopback(url: str) -> bool:
    """Tell whether a URL stays on this machine."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(url: str, allowed: frozenset[str]) -> None:
    """Refuse every URL but the allowed hosts over HTTPS and loopback.

    Raises:
        AuthError: Naming the host and the remedy.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if not host:
        raise AuthError(
            f"venue.url {url.rpartition('@')[2][:80]!r} names no host: write for example http://127.0.0.1:8080"
        )
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise AuthError(f"venue.url on {host} is scheme, host and port alone: remove user, path and query from it")
    _check_port(parts, host)
    if is_loopback(url) and parts.scheme in {"http", "https"}:
        return
    names = ", ".join(sorted(allowed))
    if host not in allowed:
        raise AuthError(f"venue.url: host {host!r} is refused: paper trading alone is allowed, on {names} or loopback")
    if parts.scheme != "https":
        raise AuthError(f"{parts.scheme}://{host} is refused: plain HTTP stays on loopback, write https://{host}")


def _check_port(parts: SplitResult, host: str) -> None:
    try:
        _ = parts.port
    except ValueError as error:
        raise AuthError(f"venue.url on {host}: {error}; write for example http://127.0.0.1:8080") from None


def load_credentials(settings: AlpacaSettings, environ: Mapping[str, str] | None = None) -> Credentials:
    """Read the keys from files or the environment.

    Raises:
        AuthError: Missing, empty or unreadable; the message names the source and never its content.
    """
    variables = os.environ if environ is None else environ
    return Credentials(
        key_id=_secret(settings, settings.key_id_file, KEY_ID_VARIABLE, variables),
        secret_key=_secret(settings, settings.secret_key_file, SECRET_KEY_VARIABLE, variables),
    )


def _secret(settings: AlpacaSettings, file: Path | None, variable: str, environ: Mapping[str, str]) -> SecretStr:
    if file is None and settings.kind == "exchange":
        return SecretStr(_EXCHANGE_KEY)
    if file is None:
        value, source = environ.get(variable, ""), f"environment variable {variable}"
    else:
        source = f"file {file}"
        try:
            value = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise AuthError(f"{source} cannot be read ({reason}): write the key into it") from None
    value = value.strip()
    if not value:
        raise AuthError(f"{source} is empty: Alpaca needs a key, set {variable} or name a file that holds it")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise AuthError(f"{source} does not hold a key: it must be one word of printable ASCII")
    return SecretStr(value)
