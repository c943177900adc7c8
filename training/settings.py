"""Settings of training: the presets, and the sections of a configuration file that `tandem train` reads.

One file serves daemon and training. Of it training reads `costs`, `training`, `period`, `calendar`, `symbols`
and, of `exchange`, what market it plays (`bars`, `synthetic`, `start`, `end`); the rest is the daemon's.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from brokers.configuration import (
    ConfigurationError,
    CostSettings,
    Section,
    apply_overrides,
    did_you_mean,
    environment_overrides,
    load_yaml,
    validate,
)
from brokers.domain import parse_period, utc
from training.dqn.settings import DqnSettings
from training.exits.settings import ExitSettings

PresetName = Literal["default", "attention", "blog", "reference", "tuned", "tutorial"]

PRESETS: Mapping[PresetName, Mapping[str, Any]] = MappingProxyType(
    {
        # Our values; `docs/experiments.md` has the ablation that chose them.
        "default": MappingProxyType({}),
        # the default with self-attention over feature groups, in half the updates
        "attention": MappingProxyType({"dqn": {"network": "attention", "updates": 1_000}}),
        # "stated": named in the blog's text. "ours": not given there, chosen here.
        "blog": MappingProxyType(
            {
                "dqn": {
                    "members": 1,  # ours: one network
                    "network": "attention",  # stated: embedded groups, self-attention across them
                    "group_width": 16,  # ours
                    "heads": 2,  # ours
                    "hidden": (64,),  # ours
                    "norm": "batch",  # stated
                    "value_heads": "free",  # ours: its shaped reward depends on the position
                    "double": True,  # stated
                    "tau": 0.005,  # stated
                    "value_loss": "huber",  # stated
                    "huber_delta": 1.0,  # ours: the library's default
                    "max_grad_norm": 0.5,  # stated
                    "lr_schedule": "plateau",  # stated: halved, patience 50; driven by validation here
                    "lr_patience": 50,  # stated
                    "evaluations": 200,  # ours
                    "learning_rate": 1e-3,  # ours
                    "weight_decay": 0.0,  # ours: plain Adam
                    "input_l1": 0.0,  # ours
                    "weight_average": 0.0,  # ours: the last weights
                    "relevance_floor": 1.0,  # ours: all columns alike
                    "belief": False,  # ours
                    "replay": "transitions",  # stated: a replay buffer of what was done
                    "prioritised": True,  # stated, with importance weights annealed and errors clipped
                    "priority_alpha": 0.6,  # ours
                    "priority_beta": 0.4,  # ours
                    "priority_clip": 1.0,  # ours
                    "exploration": "per_episode",  # stated
                    "exploration_initial": 1.0,  # stated
                    "exploration_final": 0.05,  # stated
                    "exploration_decay": 0.998,  # stated
                    "reward": "shaped",  # stated, made potential-based here
                    "gamma": 0.99,  # ours
                    "updates": 6_000,  # ours
                    "batch_bars": 64,  # ours
                    "n_envs": 64,  # ours
                    "steps_per_update": 80.0,  # ours
                    "episode_bars": 250,  # ours: 1,920 episodes, of which 1,497 reach the floor of exploration
                    "checkpoint_episodes": 25,  # stated
                },
                "exits": {"head": "sigmoid_mse"},  # stated
            }
        ),
        # the library's DQN on our bars: every position and action of each, chosen on seeds of the synthetic market
        "reference": MappingProxyType({"learner": "stable_baselines3"}),
        # the library's DQN as it is, with values tuned for the worlds with a known optimum
        "tuned": MappingProxyType(
            {
                "learner": "stable_baselines3",
                "replay": "transitions",
                "timesteps": 60_000,
                "n_envs": 16,
                "learning_rate": 1e-3,
                "learning_rate_end": 0.1,
                "batch_size": 256,
                "buffer_size": 100_000,
                "gamma": 0.98,
                "tau": 0.02,
                "target_update_interval": 16,
                "train_freq": 1,
                "gradient_steps": 4,
                "hidden": (64, 64),
                "exploration_fraction": 0.3,
                "exploration_final_eps": 0.05,
            }
        ),
        # "stated": named in the tutorial's text. "code": its script's value. "ours": chosen here.
        "tutorial": MappingProxyType(
            {
                "learner": "stable_baselines3",  # stated
                "features": "tutorial",  # stated: 10 price changes, volumes, volatilities, and the position
                "learning_rate": 1e-4,  # stated
                "learning_rate_end": 1.0,  # stated: constant
                "buffer_size": 10_000,  # stated
                "batch_size": 64,  # stated
                "gamma": 0.99,  # stated
                "exploration_fraction": 0.2,  # stated
                "timesteps": 100_000,  # code
                "learning_starts": 1_000,  # code
                "exploration_initial_eps": 1.0,  # code
                "exploration_final_eps": 0.1,  # code
                "target_update_interval": 500,  # code
                "tau": 1.0,  # code: hard copies
                "train_freq": 4,  # code
                "gradient_steps": 1,  # code
                "hidden": (64, 64),  # code
                "reward_scale": 100.0,  # code: rewards in percent
                "n_envs": 1,  # code
                "max_grad_norm": 10.0,  # code: the library's default
                "weight_decay": 0.0,  # code: plain Adam
                "replay": "transitions",  # code
                "input_clip": None,  # code: inputs as they are
                "start_position": "random",  # code: holds the asset at the start in half of the episodes
                "episode_bars": 1_000,  # ours: the tutorial always plays its whole file from its first row
            }
        ),
    }
)
"""Values by preset; a preset stands under what the file or `--set training.key=value` says."""

PRESET_COSTS: Mapping[PresetName, Mapping[str, float]] = MappingProxyType(
    {
        # stated: a 0.3 % fee; the tutorial has no other costs
        "tutorial": MappingProxyType({"fee_bps": 30.0, "half_spread_bps": 0.0, "impact": 0.0}),
    }
)
"""Costs that belong to a preset: they replace the file's, and only `--set costs.key=value` changes them."""


class TrainingSettings(Section):
    """How a policy is trained. Defaults are the preset `default`; rewards are log equity times a scale.

    `dqn` holds the switches of our own learner; from `timesteps` on, the values of the stable-baselines3 reference.
    """

    preset: PresetName = "default"
    """Which set of values the others start from."""
    learner: Literal["dqn", "stable_baselines3"] = "dqn"
    """Our own learner, or the library that everyone has."""
    dqn: DqnSettings = DqnSettings()
    """Our own learner's switches."""
    exits: ExitSettings = ExitSettings()
    """The exit head, which learns beside it; the library's learner has none."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of weights, draws and episodes; the same seed gives the same weights."""
    features: Literal["default", "tutorial"] = "default"
    """Feature spec: ours for the bar period, or the tutorial's window of ten bars."""
    data_feed: str = "recorded"
    """Name of the feed that the bars come from; a daemon on another feed refuses the bundle."""
    shorts: bool = False
    """SELL means short instead of flat, and the policy values three targets."""
    capital_usd: float = Field(45_000.0, gt=0)
    """Notional of one unit of position, for the size impact."""
    validation_fraction: float = Field(0.25, gt=0, lt=1)
    """Last share of the bars, kept from training; the features' memory before it is purged."""
    timesteps: int = Field(8_000, ge=1)
    """Steps of all episodes together."""
    n_envs: int = Field(16, ge=1, le=4_096)
    """Episodes stepped side by side."""
    episode_bars: int = Field(1_000, ge=1)
    """Longest episode; its end truncates."""
    start_position: Literal["flat", "random"] = "random"
    """Position at the start of an episode."""
    reward_scale: float | None = Field(None, gt=0)
    """Learner's reward per log equity; None: 1 over the standard deviation of a long position's bar."""
    replay: Literal["market", "transitions"] = "market"
    """`market` draws bars and learns every position and action of each; `transitions` stores what was done."""
    buffer_size: int = Field(100_000, ge=1)
    """Transitions kept, where they are."""
    learning_starts: int = Field(0, ge=0)
    """Steps before the first update."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step at the start."""
    learning_rate_end: float = Field(0.1, gt=0, le=1)
    """Its share that is left at the end (linear)."""
    weight_decay: float = Field(0.3, ge=0)
    """Decoupled weight decay (AdamW)."""
    batch_size: int = Field(384, ge=1)
    """Transitions of one update."""
    gamma: float = Field(0.98, ge=0, lt=1)
    """Discount of one bar."""
    train_freq: int = Field(1, ge=1)
    """Steps (of all episodes together, each) between updates."""
    gradient_steps: int = Field(16, ge=1)
    """Updates at a time."""
    target_update_interval: int = Field(16, ge=1)
    """Steps between moves of the target network."""
    tau: float = Field(0.02, gt=0, le=1)
    """How far it moves: 1 is a copy."""
    exploration_fraction: float = Field(0.5, ge=0, le=1)
    """Share of the training over which exploration falls."""
    exploration_initial_eps: float = Field(1.0, ge=0, le=1)
    """Share of random actions at the start."""
    exploration_final_eps: float = Field(0.1, ge=0, le=1)
    """And after it has fallen."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Gradients are clipped to this norm."""
    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers (ReLU)."""
    input_clip: float | None = Field(5.0, gt=0)
    """Features are normalised by the training bars and clipped to this many deviations; None: as they are."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        """Put the preset's values under those given."""
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "default")
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} does not exist{did_you_mean(str(preset), PRESETS)}")
        below = PRESETS[preset]
        merged = {**below, **values}
        for section in ("dqn", "exits"):
            given = values.get(section, {})
            if section in below and isinstance(given, Mapping):
                merged[section] = {**below[section], **given}
        return merged


class SyntheticSource(Section):
    """The synthetic market, as in the daemon's `exchange.synthetic`."""

    bars: int = Field(20_000, ge=10)
    """Bars per symbol."""
    seed: int = 7
    """Seed of the whole market."""
    edge: bool = True
    """Plant a mean-reverting component that can be learned."""


class MarketSource(Section):
    """What the built-in exchange plays: the market to train on where no `--bars` is given."""

    # the exchange's other settings are the daemon's
    model_config = ConfigDict(extra="ignore", frozen=True, validate_default=True)

    bars: Path | None = None
    """Recorded bars; None: the synthetic market."""
    synthetic: SyntheticSource = SyntheticSource()
    start: datetime | None = None
    """Venue time at which play starts: training ends before it."""

    @field_validator("start")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return None if value is None else utc(value)


class TrainingConfiguration(Section):
    """The sections that `tandem train` reads."""

    symbols: tuple[str, ...] = ()
    """Symbols to train on; empty for all of the bars file, or the synthetic market's own."""
    period: str = "5m"
    """Bar period."""
    calendar: str = "24/7"
    """Calendar id."""
    exchange: MarketSource = MarketSource()
    costs: CostSettings = CostSettings()
    training: TrainingSettings = TrainingSettings()

    @field_validator("period")
    @classmethod
    def _period(cls, value: str) -> str:
        parse_period(value)
        return value

    @property
    def bar_period(self) -> timedelta:
        """The bar period as a duration."""
        return parse_period(self.period)


def load_training(
    file: Path | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> TrainingConfiguration:
    """Read a configuration file, environment and overrides for training.

    Sections of the daemon are passed over; a top-level name that looks like one of ours is an error.

    Raises:
        ConfigurationError: With one line for each fault.
    """
    content = {} if file is None else load_yaml(file)
    content = apply_overrides(content, environment_overrides(os.environ if environ is None else environ))
    chosen = apply_overrides(content, overrides)
    if preset_costs := dict(PRESET_COSTS).get(_section(chosen, "training").get("preset", "default")):
        content["costs"] = {**_section(content, "costs"), **preset_costs}
    content = apply_overrides(content, overrides)
    ours = TrainingConfiguration.model_fields
    source = str(file) if file is not None else "the settings"
    for name in content:
        near = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
        if name not in ours and near:
            raise ConfigurationError(f"{source}:\n  unknown key {name!r}, did you mean {near[0]!r}?")
    return validate(TrainingConfiguration, {k: v for k, v in content.items() if k in ours}, source=source)


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section as written; empty where it is absent or no section (validation tells that)."""
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}
