"""A training saved, read back from bytes and gone on with in a new process's objects: the same weights, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import ensemble_of, market, run_to, small

from training.dqn.ensemble import Ensemble
from training.dqn.settings import DqnSettings
from training.dqn.state_codec import decode, encode

KINDS: dict[str, dict[str, Any]] = {
    "market": {},
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


def everything(ensemble: Ensemble) -> list[torch.Tensor]:
    return [one for learner in ensemble.learners for one in (*learner.weights()[0].values(), learner.target.values_EW)]


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
    for one, other in zip(everything(second), everything(whole), strict=True):
        assert torch.equal(one, other)
    timeless = [[{**record, "cpu_s": 0.0} for record in each.records] for each in (second, whole)]
    np.testing.assert_equal(timeless[0], timeless[1])


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_matter(kind: str) -> None:
    settings, table = settings_of(kind), market()
    one, same, other = (run_to(ensemble_of(settings, table, seed=seed), 6) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(same), strict=True))
    assert not torch.equal(everything(one)[0], everything(other)[0])


def test_pieces_of_any_length_give_the_same_weights() -> None:
    settings, table = settings_of("market"), market()
    whole, pieces = ensemble_of(settings, table), ensemble_of(settings, table)
    run_to(whole, 24)
    for update in (1, 2, 7, 8, 15, 24):
        pieces.run(update)
    assert torch.equal(whole.learners[0].online.values_EW, pieces.learners[0].online.values_EW)
