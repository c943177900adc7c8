"""The exit head in worlds whose best bracket is known: `tandem train exits --head`.

One head learns from trades of all four worlds at once; what tells it where it is are four of its features, each
blurred, among others that say nothing. Then it is asked for brackets at entries it has not seen, and these are valued
twice: by the world's exact solver, and on fresh paths until the standard error is small.

Axes: E entries or episodes, F features, B bars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from strategies.features.groups import TYPICAL_SIGMA
from training.exits.fit import TrainedExits, fit_exits
from training.exits.labels import Labels, Prices, label
from training.exits.rows import ExitRows
from training.exits.settings import ExitSettings
from training.market import Float, Float32
from training.markets.exits import HOLD_BARS, LEVELS, Bracket, Episodes, ExitWorld, Worth, worth_choosing
from training.markets.world import Streams

HeadName = Literal["quantile", "sigmoid_mse"]
HEADS: tuple[HeadName, ...] = ("quantile", "sigmoid_mse")

STATE_NOISE = 0.2
"""Standard deviation of what blurs the features that tell the world."""
EMPTY_FEATURES = 11
"""Features that tell nothing."""
ENTRIES = 2_048
"""Entries at which a head is asked for its bracket."""
CHUNK_EPISODES = 20_000
FRESH_CHUNKS_MAX = 400
"""Most chunks of fresh paths: eight million."""
FRESH_SEED = 1_000_003
"""First seed of the paths that value a choice; training has the seeds before."""


def bench_settings(head: HeadName, settings: ExitSettings | None = None) -> ExitSettings:
    """Return settings with the worlds' horizon and the grid of their tables."""
    levels = tuple(level for level in LEVELS if level is not None)
    given = ExitSettings() if settings is None else settings
    return given.model_copy(update={"head": head, "horizon_bars": HOLD_BARS, "levels": levels})


def entries(worlds: Sequence[ExitWorld], place: int, count: int, streams: Streams) -> Float32:
    """Return what is seen at entries into one of the worlds, (E, F): volatility, which world, and nothing else."""
    seen_EF = streams("seen").standard_normal((count, 1 + len(worlds) + EMPTY_FEATURES))
    seen_EF[:, 0] = math.log(worlds[place].sigma / TYPICAL_SIGMA)
    seen_EF[:, 1 : 1 + len(worlds)] *= STATE_NOISE
    seen_EF[:, 1 + place] += 1.0
    return seen_EF.astype(np.float32)


def simulated_rows(worlds: Sequence[ExitWorld], settings: ExitSettings, *, episodes: int, seed: int) -> ExitRows:
    """Return the labels of so many simulated entries into each world, in drawn order."""
    features, sigmas, parts = [], [], []
    for place, world in enumerate(worlds):
        features.append(entries(worlds, place, episodes, Streams(f"{world.name}|exit head|{seed}")))
        sigmas.append(np.full(episodes, world.sigma))
        for chunk, begin in enumerate(range(0, episodes, CHUNK_EPISODES)):
            count = min(CHUNK_EPISODES, episodes - begin)
            parts.append(episode_labels(world, world.episodes(count, seed * 1_000 + chunk), settings))
    order_R = Streams(f"exit head|{seed}")("order").permutation(episodes * len(worlds))
    time_R = np.arange(len(order_R))
    return ExitRows(
        features_RF=np.concatenate(features)[order_R],
        sigma_R=np.concatenate(sigmas)[order_R],
        labels=Labels(
            *(
                np.concatenate([getattr(part, name) for part in parts])[order_R]
                for name in ("value_RSK", "above_R", "below_R")
            )
        ),
        decided_R=time_R,
        known_R=time_R,
        table_row_R=order_R,
    )


def episode_labels(world: ExitWorld, episodes: Episodes, settings: ExitSettings) -> Labels:
    """Return what every bracket earns in simulated episodes, by the code that labels recorded bars."""
    count, bars = episodes.close_EB.shape

    def prices(log_EB: Float) -> Float:
        # the bar before the entry, at whose close it is decided
        price_T: Float = np.exp(np.concatenate([np.zeros((count, 1)), log_EB], axis=1)).ravel()
        return price_T

    side = world.cost_bps * 1e-4
    row_R = np.arange(count) * (bars + 1)
    return label(
        Prices(
            prices(episodes.open_EB),
            prices(episodes.high_EB),
            prices(episodes.low_EB),
            prices(episodes.close_EB),
            np.zeros(count * (bars + 1)),
            np.full(count * (bars + 1), side),
            making=side,
        ),
        row_R,
        row_R + 1,
        row_R + bars,
        np.full(count, world.sigma),
        settings.levels,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """What a head chose in a world, log returns of a trade after costs.

    Args:
        world: Its name.
        head: The head's.
        best: The best bracket of the grid.
        none: Worth of having no exits.
        bracket: What it chose: the most frequent bracket, or the median of levels where these are continuous.
        share: Of the entries at which exactly this one was chosen.
        is_grid: False where levels are continuous.
        exact: Exact worth of the choices; of the median bracket where these are continuous.
        fresh: Mean of fresh paths, each with the bracket of an entry.
        fresh_error: Its standard error.
        episodes: Fresh paths played.
    """

    world: str
    head: HeadName
    best: Worth
    none: float
    bracket: Bracket
    share: float
    is_grid: bool
    exact: float
    fresh: float
    fresh_error: float
    episodes: int

    @property
    def fraction(self) -> float | None:
        """Exact worth over that of the best bracket; None where no bracket adds anything."""
        return self.exact / self.best.net if worth_choosing(self.best.net, self.none) else None


def bench_heads(
    worlds: Sequence[ExitWorld],
    *,
    heads: Sequence[HeadName] = HEADS,
    settings: ExitSettings | None = None,
    episodes: int = 60_000,
    seed: int = 1,
    error_bps: float = 0.5,
) -> Iterator[tuple[TrainedExits, list[Choice]]]:
    """Train every head on the same trades of all worlds and yield it with its choice in each.

    Args:
        worlds: Laws after an entry.
        heads: Which heads.
        settings: Of the heads, but for horizon and grid, which are the worlds'.
        episodes: Trades of each world to learn from.
        seed: Of those trades and of the weights.
        error_bps: Largest standard error of a worth on fresh paths, as far as `FRESH_CHUNKS_MAX` chunks reach.
    """
    rows = simulated_rows(worlds, bench_settings("quantile", settings), episodes=episodes, seed=seed)
    no_levels = np.zeros(rows.features_RF.shape[1], dtype=bool)
    tables = [world.table() for world in worlds]
    for head in heads:
        trained = fit_exits(rows, bench_settings(head, settings), volatility_column=0, level_F=no_levels, seed=seed)
        choices = []
        for place, (world, table) in enumerate(zip(worlds, tables, strict=True)):
            seen_EF = entries(worlds, place, ENTRIES, Streams(f"{world.name}|exit head|asked|{seed}"))
            choices.append(_choice(world, table, head, chosen_brackets(trained, seen_EF, world.sigma), error_bps))
        yield trained, choices


def chosen_brackets(trained: TrainedExits, seen_EF: Float32, sigma: float) -> Float:
    """Return (E, 2) stops and take-profits of long entries, in `sigma`, infinite for none."""
    with torch.no_grad():
        stop_E, take_E = trained.module(torch.from_numpy(seen_EF), torch.ones(len(seen_EF)))[:2]
    chosen_E2: Float = torch.stack([stop_E, take_E], dim=1).numpy().astype(np.float64) / sigma
    return chosen_E2


def _choice(world: ExitWorld, table: Sequence[Worth], head: HeadName, chosen_E2: Float, error_bps: float) -> Choice:
    none = next(one.net for one in table if one.bracket == Bracket(None, None))
    chosen_E2 = np.where(np.isinf(chosen_E2), np.inf, np.round(chosen_E2, 4))
    distinct, count = np.unique(chosen_E2, axis=0, return_counts=True)
    is_grid = len(distinct) <= len(table)
    if is_grid:
        most = distinct[count.argmax()]
        exact = sum(world.worth(_bracket(one)) * n for one, n in zip(distinct, count, strict=True)) / len(chosen_E2)
    else:
        most = np.median(chosen_E2, axis=0)
        exact = world.worth(_bracket(most))
    fresh, fresh_error, episodes = fresh_worth(world, chosen_E2, error_bps=error_bps)
    return Choice(
        world=world.name,
        head=head,
        best=table[0],
        none=none,
        bracket=_bracket(most),
        share=float((chosen_E2 == most).all(axis=1).mean()),
        is_grid=is_grid,
        exact=float(exact),
        fresh=fresh,
        fresh_error=fresh_error,
        episodes=episodes,
    )


def _bracket(levels_2: Float) -> Bracket:
    stop, take = (None if math.isinf(level) else float(level) for level in levels_2)
    return Bracket(stop, take)


def fresh_worth(world: ExitWorld, chosen_E2: Float, *, error_bps: float) -> tuple[float, float, int]:
    """Return mean and standard error of trades on paths never seen, and how many there were.

    Entry after entry is played with its own bracket, round and round.
    """
    total, squares, played = 0.0, 0.0, 0
    for chunk in range(FRESH_CHUNKS_MAX):
        episodes = world.episodes(CHUNK_EPISODES, FRESH_SEED + chunk)
        place_E = (played + np.arange(CHUNK_EPISODES)) % len(chosen_E2)
        earned_E = earned_each(world, episodes, chosen_E2[place_E])
        total, squares, played = total + earned_E.sum(), squares + (earned_E**2).sum(), played + CHUNK_EPISODES
        mean = total / played
        error = math.sqrt(max(squares / played - mean**2, 0.0) / played)
        if chunk and error <= error_bps * 1e-4:
            break
    return float(mean), float(error), played


def earned_each(world: ExitWorld, episodes: Episodes, level_E2: Float) -> Float:
    """Return (E,) what each trade pays after costs with a bracket of its own, in `sigma`; see `Episodes.earned`."""
    bars = episodes.close_EB.shape[1]
    stop_E, take_E = -level_E2[:, 0] * world.sigma, level_E2[:, 1] * world.sigma
    stopped_EB, taken_EB = episodes.low_EB <= stop_E[:, None], episodes.high_EB > take_E[:, None]
    stopped_at_E = np.where(stopped_EB.any(axis=1), stopped_EB.argmax(axis=1), bars)
    taken_at_E = np.where(taken_EB.any(axis=1), taken_EB.argmax(axis=1), bars)
    paid_E = episodes.close_EB[:, -1].copy()
    is_taken_E, is_stopped_E = taken_at_E < stopped_at_E, (stopped_at_E <= taken_at_E) & (stopped_at_E < bars)
    paid_E[is_taken_E], paid_E[is_stopped_E] = take_E[is_taken_E], stop_E[is_stopped_E]
    earned_E: Float = paid_E + 2.0 * math.log1p(-world.cost_bps * 1e-4)
    return earned_E
