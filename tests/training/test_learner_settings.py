"""Settings that do not fit one another are refused with what to do; presets train."""

import math
from typing import Any

import numpy as np
import pytest
from learner_parts import GROUPS, market
from pydantic import ValidationError

from brokers.configuration import ConfigurationError
from training.dqn.ensemble import train_ensemble
from training.dqn.settings import DqnSettings
from training.settings import PRESETS, TrainingSettings, load_training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"munchausen": 0.9}, "munchausen makes values depend on the position: it needs value_heads: free"),
        ({"reward": "shaped"}, "reward: shaped makes values depend on the position: it needs value_heads: free"),
        (
            {"network": "attention", "group_width": 15, "heads": 2},
            "group_width 15 cannot be shared by 2 heads: give a multiple",
        ),
        ({"n_step": 2, "value_loss": "quantile"}, "n_step beyond 1 needs replay: market"),
        ({"n_step": 2, "replay": "transitions"}, "n_step beyond 1 needs replay: market"),
        ({"n_step": 2, "value_heads": "free", "munchausen": 0.5}, "n_step beyond 1 needs .* no munchausen"),
        ({"munchausen": 0.5, "value_heads": "free", "value_loss": "quantile"}, "munchausen needs value_loss"),
        ({"lr_schedule": "plateau", "evaluations": 10}, "10 evaluations never outlast lr_patience 50"),
        ({"replay": "transitions", "buffer_size": 10, "n_envs": 16}, "buffer_size of 10 does not hold one step of 16"),
        ({"exploration_initial": 0.1, "exploration_final": 0.5}, "exploration_final 0.5 is above"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (8, 0)}, "hidden"),
        ({"gamma": 1.0}, "gamma"),
        ({"members": 0}, "members"),
        ({"learning_rat": 1.0}, "learning_rat"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DqnSettings(**changes)


def test_a_setting_that_does_not_exist_is_named_with_the_one_that_does() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'gamma'"):
        load_training(None, ["training.dqn.gama=0.5"], environ={})


@pytest.mark.parametrize("change", [{"dqn": {"gamma": 0.5}}, {"dqn": {}}, {}])
def test_a_preset_stands_under_what_is_given(change: dict[str, Any]) -> None:
    settings = TrainingSettings(preset="blog", **change).dqn
    assert settings.gamma == change.get("dqn", {}).get("gamma", 0.99)
    assert (settings.tau, settings.norm, settings.reward) == (0.005, "batch", "shaped")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shorts", [False, True])
def test_every_preset_of_our_learner_trains_from_end_to_end(*, preset: str, shorts: bool) -> None:
    quick = {"updates": 12, "evaluations": 60, "batch_bars": 16, "hidden": (8,), "group_width": 4}
    settings = TrainingSettings(preset=preset, dqn={**quick, "buffer_size": 500, "threads": 1})
    trained = train_ensemble(market(), settings.dqn, GROUPS, seed=1, shorts=shorts)
    assert trained.updates == 12
    assert all(one.isfinite().all() for one in trained.weights.values())
    assert math.isfinite(trained.belief.mean_bps)


def test_the_blogs_exploration_reaches_its_floor_before_the_training_ends() -> None:
    blog = TrainingSettings(preset="blog").dqn
    episodes = blog.updates * blog.steps_per_update / blog.episode_bars
    assert blog.exploration_initial * blog.exploration_decay**episodes < blog.exploration_final
    assert blog.evaluations > blog.lr_patience


def test_every_switch_trains_beside_every_other_that_it_is_allowed_with() -> None:
    rng = np.random.default_rng(3)
    choices: dict[str, list[Any]] = {
        "network": ["attention", "mlp"],
        "norm": ["none", "layer", "batch"],
        "value_heads": ["post_decision", "free"],
        "dueling": [False, True],
        "value_loss": ["huber", "mse", "quantile", "categorical"],
        "double": [False, True],
        "n_step": [1, 3],
        "munchausen": [0.0, 0.9],
        "replay": ["market", "transitions"],
        "prioritised": [False, True],
        "reward": ["log_equity", "shaped"],
        "lr_schedule": ["cosine", "plateau", "constant"],
        "exploration": ["per_episode", "linear"],
        "weight_average": [0.0, 0.01],
    }
    quick = {"updates": 3, "evaluations": 4, "lr_patience": 2, "batch_bars": 8, "hidden": (6,), "group_width": 4}
    trained = 0
    table = market(120)
    for _ in range(200):
        chosen = {name: values[rng.integers(len(values))] for name, values in choices.items()}
        try:
            settings = DqnSettings(**quick, **chosen, members=2, threads=1, atoms=4, buffer_size=200, n_envs=4)
        except ValidationError:
            continue
        done = train_ensemble(table, settings, GROUPS, seed=1, shorts=bool(rng.integers(2)))
        assert all(one.isfinite().all() for one in done.weights.values()), chosen
        trained += 1
        if trained == 25:
            break
    assert trained == 25
