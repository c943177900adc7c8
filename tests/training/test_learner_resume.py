"""A training saved, read back from bytes and gone on with in a new process's objects: the same weights, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import ensemble_of, exported, market, run_to, small

from training.dqn.ensemble import Ensemble
from training.dqn.settings import DqnSettings
from training.dqn.state_codec import decode, encode

KINDS: dict[str, dict[str, Any]] = {
    "market": {},
    "market, torch": {"double": False},
    "market, prioritised": {"prioritised": True},
    "transitions": {"replay": "transitions"},
    "transitions, prioritised": {"replay": "transitions", "prioritised": True, "value_heads": "free"},
    "a small ring": {"replay": "transitions", "buffer_size": 40, "n_envs": 7, "steps_per_update": 5},
    "exploration by episodes": {"replay": "transitions", "exploration": "per_episode", "episode_bars": 9},
    "plateau": {"lr_schedule": "plateau", "evaluations": 24, "lr_patience": 2},
    "batch normalisation": {"norm": "batch"},
    "attention": {"network": "attention", "group_width": 4, "weight_average": 0.3},
    "shaped": {"value_heads": "free", "reward": "shaped", "munchausen": 0.5},
}


def encoded_equal(one: Ensemble, other: Ensemble) -> bool:
    """Whether the whole states are the same, but for the time that they took."""
    states = [{**each.state(), "cpu_s": 0.0} for each in (one, other)]
    (content, arrays), (their_content, theirs) = (encode(state) for state in states)
    same = content == their_content and arrays.keys() == theirs.keys()
    return same and all(np.array_equal(array, theirs[name]) for name, array in arrays.items())


def told(ensemble: Ensemble) -> list[dict[str, Any]]:
    """The records without the time; means over updates are summed up in pieces, which end where a stop was."""
    means = ("loss", "grad_norm", "grad_clipped")
    return [
        {**record, "cpu_s": 0.0, **{name: [f"{one:.12g}" for one in record[name]] for name in means}}
        for record in ensemble.records
    ]


def settings_of(kind: str) -> DqnSettings:
    return small(**{"updates": 24, "members": 2, "threads": 2, "evaluations": 4, **KINDS[kind]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 13])
def test_a_training_that_was_saved_ends_like_one_that_never_stopped(*, kind: str, at: int) -> None:
    settings, table = settings_of(kind), market()
    whole = run_to(ensemble_of(settings, table), 24)
    first = run_to(ensemble_of(settings, table), at)
    saved = encode(first.state())
    records = [dict(record) for record in first.records]
    run_to(first, 20)  # what was saved is not touched by what comes after
    second = ensemble_of(settings, table)
    second.restore(decode(*saved), records)
    assert second.updates == at
    run_to(second, 24)
    assert torch.equal(exported(second), exported(whole))
    assert encoded_equal(second, whole)
    assert told(second) == told(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_matter(kind: str) -> None:
    settings, table = settings_of(kind), market()
    one, same, other = (run_to(ensemble_of(settings, table, seed=seed), 6) for seed in (1, 1, 2))
    assert torch.equal(exported(one), exported(same))
    assert not torch.equal(exported(one), exported(other))


def test_pieces_of_any_length_give_the_same_weights() -> None:
    settings, table = settings_of("market"), market()
    whole, pieces = ensemble_of(settings, table), ensemble_of(settings, table)
    run_to(whole, 24)
    for update in (1, 2, 7, 8, 15, 24):
        pieces.run(update)
    assert torch.equal(exported(whole), exported(pieces))
