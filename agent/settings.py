"""Every setting of the daemon, replay and the exchange, with its unit and default.

Read by `brokers.configuration.load_settings`: YAML file, `TANDEM__SECTION__KEY`, `--set section.key=value`.
Durations end in `_s` (seconds), money in `_usd`, fractions of equity in `_fraction`.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from brokers.configuration import ConfigurationError, CostSettings, Section, load_settings
from brokers.domain import AssetClass, parse_period, utc

__all__ = ["ConfigurationError", "Settings", "load"]


_ALPACA_PERIOD = re.compile(r"[1-9]m|[1-5][0-9]m|[1-9]h|1[0-9]h|2[0-3]h|1d")


class VenueSettings(Section):
    """Where orders go."""

    kind: Literal["exchange", "alpaca"] = "exchange"
    """`exchange`: the built-in exchange process; `alpaca`: Alpaca's paper venue."""
    url: str | None = None
    """Base URL. None with `exchange`: the daemon starts an exchange process of its own."""
    key_id_file: Path | None = None
    """File that holds the venue's key id; otherwise the environment variable APCA_API_KEY_ID."""
    secret_key_file: Path | None = None
    """File that holds the venue's secret; otherwise the environment variable APCA_API_SECRET_KEY."""
    connect_timeout_s: float = Field(3.05, gt=0, le=60)
    """Longest wait for a connection."""
    read_timeout_s: float = Field(10.0, gt=0, le=120)
    """Longest wait for an answer."""
    outage_s_max: float = Field(30.0, ge=0, le=86_400)
    """How long questions to the venue are repeated while it cannot be reached, before the daemon gives up."""


class SyntheticSettings(Section):
    """The synthetic market of the built-in exchange, used when `exchange.bars` is not set."""

    bars: int = Field(20_000, ge=10, le=5_000_000)
    """Bars per symbol."""
    seed: int = 7
    """Seed of the whole market."""
    edge: bool = True
    """Plant a mean-reverting component that can be learned; its size is printed."""


class ExchangeSettings(Section):
    """The built-in exchange: what it plays and how it fills."""

    bars: Path | None = None
    """Recorded bars (Parquet or CSV); None plays the synthetic market."""
    synthetic: SyntheticSettings = SyntheticSettings()
    start: datetime | None = None
    """Venue time at which play starts; earlier bars are history. None: the first bar."""
    end: datetime | None = None
    """Bars that start at or after this time are not played."""
    books: Path = Path("var/exchange.sqlite")
    """The exchange's own durable books."""
    seed: int = 1
    """Seed of partial fills."""
    initial_cash_usd: Decimal = Field(Decimal(100_000), gt=0)
    """Cash of a new account."""
    partial_fill_probability: float = Field(0.1, ge=0, le=1)
    """Chance that a market order fills only in part at an open."""
    leverage: float = Field(1.0, ge=1, le=4)
    """Buying power over equity."""
    rule_set: Literal["native", "alpaca"] = "native"
    """`native` allows brackets for every asset class; `alpaca` keeps that venue's rules."""
    port: int = Field(0, ge=0, le=65_535)
    """Port on loopback; 0 lets the system choose."""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if isinstance(value, int | float):  # pydantic would take a year for seconds since 1970
            raise ValueError("write a time, such as 2024-01-01T00:00:00Z")  # noqa: TRY004 - pydantic reports it
        return value

    @field_validator("start", "end")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return None if value is None else utc(value)


class StrategySettings(Section):
    """Who decides."""

    name: str = "dqn"
    """`dqn` (the bundle of the slot), `llm` (the language model), `fused` (both), or a baseline's name."""
    mode: Literal["dqn", "llm", "fused"] | None = None
    """Which minds decide; says the same as `name`, for the three that are models."""
    slot: str = "default"
    """Registry slot that names the bundle."""
    models: Path = Path("models")
    """Root of the model registry."""
    bundle: Path | None = None
    """A bundle directory to use instead of the slot's."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a baseline."""
    shorts: bool = False
    """Allow targets of -1."""
    data_feed: str = "recorded"
    """Name of the data feed; a bundle trained on another feed is refused."""

    @model_validator(mode="before")
    @classmethod
    def _named_by_mode(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mode") is not None and "name" not in values:
            return {**values, "name": values["mode"]}
        return values

    @model_validator(mode="after")
    def _one_name(self) -> StrategySettings:
        if self.mode is not None and self.mode != self.name:
            raise ValueError(f"mode is {self.mode!r} and name is {self.name!r}: set one of them")
        return self


class FusionSettings(Section):
    """How the two minds are pooled (`strategy.mode: fused`); what is not set here comes from the slot."""

    llm_weight: float | None = Field(None, ge=0, le=100)
    """Weight of the language model; None takes the slot's, which is 0 until it was earned."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of the softmax over the network's values, in their unit (log equity); None takes the slot's."""


class LlmSettings(Section):
    """The language model, served by Ollama; used with `strategy.mode` `llm` or `fused`.

    Model, digest, prompt version and calibration come from the slot, unless they are set here.
    """

    host: str = "http://127.0.0.1:11434"
    """The server: this machine, https, or plain http to one of `trusted_hosts`."""
    trusted_hosts: tuple[str, ...] = ()
    """Names of machines that may be spoken to in plain http."""
    model: str | None = None
    """Name (tag) of the model on the server; None takes the slot's."""
    digest: str | None = None
    """Digest of the model, at least its first 12 digits; another one served under the name has no vote."""
    temperature: float | None = Field(None, ge=0.05, le=20)
    """Calibration: probabilities p become p^(1/temperature), normalised; None takes the slot's (1 if it has none)."""
    mass_min: float = Field(0.2, ge=0, le=1)
    """Least probability that the three actions must have together before they are made to sum to 1."""
    tie: float = Field(1e-3, ge=0, le=0.5)
    """The position is kept where the best two targets are so close in probability."""
    deadline_s: float = Field(8.0, ge=0.05, le=600)
    """Longest wait for all answers of one close."""
    reserve_s: float = Field(2.0, ge=0.05, le=60)
    """Kept of `daemon.decision_deadline_s` for what comes after the answers: orders go out one after another."""
    connect_s: float = Field(1.0, ge=0.01, le=60)
    """Longest wait for a connection."""
    warm_up_s: float = Field(600.0, ge=0.05, le=3_600)
    """Longest wait for the model to be loaded; until then it has no vote, and that is no failure."""
    concurrency: int = Field(8, ge=1, le=64)
    """Most questions at the server at a time."""
    breaker_failures: int = Field(3, ge=1, le=1_000)
    """Failures in a row after which the server is left alone."""
    breaker_pause_s: float = Field(60.0, ge=0, le=86_400)
    """For how long, before one question tries again."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Sent with every question."""
    num_ctx: int = Field(2_048, ge=256, le=32_768)
    """Context length in tokens: a change makes the server load the model again."""
    num_predict: int = Field(96, ge=16, le=512)
    """Most tokens of an answer."""
    recorded: Path | None = None
    """Recorded answers that a backtest reads: a ledger or a JSONL file. None: the ledger of `ledger.url`."""

    @field_validator("digest", mode="before")
    @classmethod
    def _digest_is_text(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError(  # noqa: TRY004 - a fault of the settings, told with the others
                "YAML reads it as a number, and would drop leading zeros: write it in quotes, in the file as "
                'digest: "..." and in a shell as --set \'llm.digest="..."\''
            )
        return value


class SizingSettings(Section):
    """How large an entry is; HOLD never resizes."""

    volatility_target_annual: float = Field(0.4, gt=0)
    """Wanted standard deviation of a position's return in a year, as a fraction of equity."""
    max_fraction: float = Field(0.45, gt=0, le=1)
    """Largest entry as a fraction of equity."""


class ExitSettings(Section):
    """Protective exits of an entry, where the strategy does not choose them."""

    stop_volatility: float | None = Field(4.0, gt=0)
    """Stop distance in standard deviations over the horizon; None for no stop."""
    take_profit_volatility: float | None = Field(8.0, gt=0)
    """Take-profit distance in the same unit; None for none."""
    horizon_bars: int = Field(12, ge=1)
    """Bars over which the standard deviation is taken (square-root scaling)."""
    max_loss_fraction: float = Field(0.05, gt=0, le=1)
    """Loss, as a fraction of the position's value, that is accepted where there is no stop."""


class RiskSettings(Section):
    """The gate. It limits entries; reductions and exits are never blocked."""

    max_position_fraction: float = Field(0.5, gt=0)
    """Largest absolute position of one symbol over equity."""
    max_gross_fraction: float = Field(1.0, gt=0)
    """Largest sum of absolute positions over equity."""
    max_order_notional_usd: Decimal = Field(Decimal(1_000_000), gt=0)
    """Largest single order."""
    daily_loss_fraction: float = Field(0.05, gt=0)
    """Loss of equity since the venue day began (00:00 UTC) above which entries stop for the day."""
    drawdown_fraction: float = Field(0.2, gt=0)
    """Drawdown from the highest equity above which the daemon halts until `tandem resume`."""
    orders_per_hour: int = Field(60, ge=1)
    """Most entries per symbol in one hour of venue time."""
    stale_bars_max: int = Field(2, ge=1)
    """Oldest usable bar, in bar periods before the close that is decided."""
    out_of_range_features_max: int = Field(3, ge=0)
    """Most features of one observation at or beyond their stated range."""
    reject_streak_max: int = Field(5, ge=1)
    """Venue rejections in a row after which a symbol's entries stop until `tandem resume`."""
    cooldown_bars: int = Field(0, ge=0)
    """Bars without a new entry after a stop was hit."""


class LedgerSettings(Section):
    """The only durable state of the daemon."""

    url: str = "sqlite:///var/tandem.sqlite"
    """SQLAlchemy URL: `sqlite:///file`, or `postgresql://user@host/database` with the extra `postgres`."""
    busy_timeout_s: float = Field(5.0, gt=0, le=60)
    """Longest wait for another process's lock."""
    free_bytes_min: int = Field(20_000_000, ge=0)
    """Least free space on the ledger's disk at the start."""


class DaemonSettings(Section):
    """The daemon's life."""

    decision_deadline_s: float = Field(10.0, gt=0, lt=86_400)
    """Orders leave at most this long after a bar's close (venue time)."""
    bar_grace_s: float = Field(3.0, ge=0, lt=86_400)
    """Wait after a close before the bars are fetched; 0 is used on a stepped venue."""
    sync_interval_s: float = Field(5.0, gt=0, le=86_400)
    """Venue time between two looks at working orders between closes."""
    reconcile_interval_s: float = Field(3_600.0, gt=0, le=604_800)
    """Venue time between two full reconciliations."""
    misfire_grace_s: float = Field(30.0, gt=0, le=86_400)
    """A job later than this is missed, and counted."""
    stop_timeout_s: float = Field(5.0, gt=0, le=60)
    """From SIGTERM to the end of the process."""
    max_bars: int | None = Field(None, ge=1)
    """Stop after this many closes; None runs on."""
    attempts_max: int = Field(3, ge=1, le=10)
    """Most wire attempts of one intent; a new one follows only a proven absence of the former."""
    bar_store: Path | None = Path("var/bars")
    """Folder of the bar store; None keeps no bars beyond the ledger."""


class HealthSettings(Section):
    """/healthz, /readyz and /metrics."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = Field(None, ge=0, le=65_535)
    """Port; 0 lets the system choose, None serves nothing."""


class LogSettings(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["console", "json"] = "console"
    """For people or for machines."""
    file: Path | None = None
    """File that the daemon writes its log to as well; followed when it is renamed (logrotate). None: stderr alone."""
    file_bytes_max: int | None = Field(None, ge=100_000)
    """Size from which the daemon rotates the file itself; None leaves that to logrotate."""
    files_kept: int = Field(5, ge=1, le=100)
    """Files kept when the daemon rotates: `file.1`, the newest, and so on."""


NotifiedEvent = Literal["fills", "halts", "incidents", "daily_summary", "start_stop"]


class NotificationSettings(Section):
    """Messages to people, through Apprise; none are sent where no URL is given."""

    urls_file: Path | None = None
    """File with one Apprise URL a line; otherwise the environment variable TANDEM_NOTIFICATION_URLS."""
    events: tuple[NotifiedEvent, ...] = ("halts", "incidents", "daily_summary", "start_stop")
    """What is told: `fills`, `halts`, `incidents`, `daily_summary`, `start_stop`."""
    messages_max: int = Field(5, ge=1, le=1_000)
    """Most messages of one kind of event within `interval_s`; what comes on top is told in one message after it."""
    interval_s: float = Field(600.0, gt=0, le=86_400)
    """Wall time over which `messages_max` counts."""
    timeout_s: float = Field(10.0, gt=0, le=60)
    """Longest time that one sending may take, from connecting to the end of the answer."""
    retry_s_max: float = Field(300.0, gt=0, le=86_400)
    """Longest wait before a message is sent again; waits double from one second on."""
    give_up_after_s: float = Field(21_600.0, gt=0, le=604_800)
    """How long a message is tried before it is dropped, and counted as dropped."""
    trusted_hosts: tuple[str, ...] = ()
    """Hosts beyond this machine to which messages may go in plain text, or with an unchecked certificate."""


class Settings(Section):
    """All settings of one daemon."""

    account_scope: str = Field("paper", min_length=1, max_length=64)
    """Names the account in order ids: one daemon trades on one venue account, whose positions it guards."""
    symbols: tuple[str, ...] = ()
    """Symbols to trade; empty with the exchange: all that it plays."""
    period: str = "5m"
    """Bar period: a whole number and s, m, h or d."""
    calendar: str = "24/7"
    """`24/7`, or the id of an exchange calendar such as `XNYS`."""
    asset_class: AssetClass = AssetClass.CRYPTO
    """`crypto` or `us_equity`."""
    venue: VenueSettings = VenueSettings()
    exchange: ExchangeSettings = ExchangeSettings()
    costs: CostSettings = CostSettings()
    strategy: StrategySettings = StrategySettings()
    llm: LlmSettings = LlmSettings()
    fusion: FusionSettings = FusionSettings()
    sizing: SizingSettings = SizingSettings()
    exits: ExitSettings = ExitSettings()
    risk: RiskSettings = RiskSettings()
    ledger: LedgerSettings = LedgerSettings()
    daemon: DaemonSettings = DaemonSettings()
    health: HealthSettings = HealthSettings()
    log: LogSettings = LogSettings()
    notifications: NotificationSettings = NotificationSettings()
    training: dict[str, Any] = Field(default_factory=dict)
    """Read and checked by `tandem train`; the daemon ignores it."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """Read and checked by `tandem train evaluate`; the daemon ignores it."""

    @field_validator("period")
    @classmethod
    def _period(cls, value: str) -> str:
        parse_period(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.venue.kind == "alpaca" and not self.symbols:
            raise ValueError("symbols is empty: name the symbols to trade on Alpaca")
        if self.venue.kind == "alpaca" and not _ALPACA_PERIOD.fullmatch(self.period):
            raise ValueError(f"period {self.period!r}: Alpaca has bars of 1m to 59m, 1h to 23h and 1d")
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError(f"symbols holds a name twice: {', '.join(self.symbols)}")
        if wrong := [name for name in self.symbols if not name.strip() or name != name.strip()]:
            raise ValueError(f"symbols holds {wrong[0]!r}: write names without blanks around them")
        return self

    @property
    def bar_period(self) -> timedelta:
        """The bar period as a duration."""
        return parse_period(self.period)


def load(file: Path | None, overrides: tuple[str, ...] | list[str] = ()) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: One line for each fault, with the remedy.
    """
    return load_settings(Settings, file, overrides)
