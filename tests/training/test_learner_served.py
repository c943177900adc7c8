"""What an ensemble says when asked: costs, spread, attention, belief; and its exported model says the same."""

from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import ensemble_of, learner_of, market, run_to, small
from small_markets import ALL_COSTS, walk

from strategies.features import tutorial_spec
from strategies.policy import Model, greedy_targets
from training.dqn.ensemble import Ensemble
from training.dqn.export import check_equal, export_onnx
from training.dqn.learner import Learner
from training.dqn.served import EnsembleValues
from training.market import build_table

HEADS: list[dict[str, Any]] = [
    {"belief": False},
    {"belief": False, "double": False, "hidden": (6, 5)},
    {"belief": False, "network": "attention", "group_width": 4, "dueling": True},
    {"value_heads": "free", "norm": "batch"},
    {"value_heads": "free", "norm": "layer", "value_loss": "quantile", "atoms": 4, "dueling": True},
    {"belief": False, "value_loss": "categorical", "atoms": 8},
]


def served(*, shorts: bool = False, members: int = 3, **changes: Any) -> tuple[Ensemble, EnsembleValues]:
    ensemble = run_to(ensemble_of(small(members=members, **changes), market(), shorts=shorts), 12)
    return ensemble, ensemble.finished(wall_s=0.0, stopped_by_budget=False).network


def answers(network: EnsembleValues, features: torch.Tensor, held: int) -> dict[str, np.ndarray[Any, Any]]:
    position = torch.full((len(features), 1), float(held))
    with torch.no_grad():
        outputs = network(features, position)
    return {name: one.numpy() for name, one in zip(network.output_names, outputs, strict=True)}


def some_features(rows: int = 50, width: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(rows, width)).astype(np.float32))


@pytest.mark.parametrize("changes", HEADS, ids=str)
@pytest.mark.parametrize("shorts", [False, True])
def test_the_served_values_are_the_members_mean_in_log_equity(*, changes: dict[str, Any], shorts: bool) -> None:
    ensemble, network = served(shorts=shorts, **changes)
    (learner,) = ensemble.learners
    rows, held = ensemble.table.start_rows, ensemble.bars.positions
    value_RO = learner.values(rows).mean(dim=0).numpy()
    if ensemble.settings.value_heads == "free":
        q_RNN = value_RO.reshape(len(rows), len(held), len(held))
    else:
        q_RNN = value_RO[:, None, :] + ensemble.bars.expected_cost_NN.numpy()
    q_RNN = q_RNN / ensemble.bars.reward_scale
    for old, position in enumerate(held):
        told = answers(network, torch.from_numpy(ensemble.table.features_TF[rows]), position)
        for name, target in (("q_flat", 0), ("q_long", 1), ("q_short", -1)):
            if target in held:
                wanted = q_RNN[:, old, held.index(target)]
                np.testing.assert_allclose(told[name][:, 0], wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_a_spread_is_never_negative_and_nothing_for_a_single_member(changes: dict[str, Any]) -> None:
    _, network = served(shorts=True, **changes)
    _, alone = served(shorts=True, members=1, **changes)
    for held in (-1, 0, 1):
        assert (answers(network, some_features(), held)["spread"] >= 0.0).all()
        assert (answers(alone, some_features(), held)["spread"] == 0.0).all()
    assert max(answers(network, some_features(), held)["spread"].max() for held in (-1, 0, 1)) > 0.0


def test_a_spread_is_that_of_the_members_advantages() -> None:
    ensemble, network = served(belief=False)
    rows = ensemble.table.start_rows
    (learner,) = ensemble.learners
    q_ERN = (learner.values(rows) + ensemble.bars.expected_cost_NN[0]).numpy() / ensemble.bars.reward_scale
    told = answers(network, torch.from_numpy(ensemble.table.features_TF[rows]), 0)
    moves = told["q_long"][:, 0] > told["q_flat"][:, 0]
    gain_ER = q_ERN[:, :, 1] - q_ERN[:, :, 0]
    np.testing.assert_allclose(told["spread"][moves, 0], gain_ER.std(axis=0)[moves], rtol=1e-3, atol=1e-8)


def test_attention_is_shared_out_among_the_groups() -> None:
    _, network = served(network="attention", group_width=4)
    attention = answers(network, some_features(), 0)["attention"]
    assert attention.shape == (50, 2)
    assert (attention > 0.0).all()
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("shorts", [False, True])
def test_what_is_held_matters_by_the_known_cost_alone(*, shorts: bool) -> None:
    ensemble, network = served(shorts=shorts, belief=False)
    cost_NN = ensemble.bars.expected_cost_NN.numpy() / ensemble.bars.reward_scale
    held = ensemble.bars.positions
    told = {position: answers(network, some_features(), position) for position in held}
    for name, target in (("q_flat", 0), ("q_long", 1), ("q_short", -1)):
        if target not in held:
            continue
        for position in held:
            moved = told[position][name] - told[0][name]
            into = held.index(target)
            wanted = cost_NN[held.index(position), into] - cost_NN[held.index(0), into]
            np.testing.assert_allclose(moved, wanted, atol=1e-8)
    assert (np.diag(cost_NN) == 0.0).all()
    assert (cost_NN <= 0.0).all()


def test_free_values_may_depend_on_what_is_held_in_any_way() -> None:
    _, network = served(value_heads="free")
    moved = answers(network, some_features(), 1)["q_long"] - answers(network, some_features(), 0)["q_long"]
    assert moved.std() > 1e-6


@pytest.mark.parametrize("shorts", [False, True])
def test_without_belief_no_position_is_ever_changed(*, shorts: bool) -> None:
    ensemble, network = served(shorts=shorts, belief=False)
    network.belief = 0.0
    features = some_features() * 10.0
    for held in ensemble.bars.positions:
        told = answers(network, features, held)
        q_BT = np.concatenate([told[f"q_{name}"] for name in ("flat", "long", "short")[: 2 + shorts]], axis=1)
        assert (greedy_targets(q_BT, network.targets, np.full(50, held)) == held).all()


def test_belief_shrinks_advantages_over_flat_and_leaves_costs() -> None:
    _, network = served(belief=False)
    gains = {}
    for belief in (1.0, 0.5, 0.0):
        network.belief = belief
        told = answers(network, some_features(), 0)
        gains[belief] = told["q_long"] - told["q_flat"]
    np.testing.assert_allclose(gains[0.5], (gains[1.0] + gains[0.0]) / 2.0, atol=1e-8)
    assert gains[0.0].std() < 1e-9
    assert gains[0.0].max() < 0.0


def test_what_is_exported_is_the_running_mean_and_not_the_last_weights() -> None:
    ensemble, network = served(weight_average=0.1, norm="layer")
    (learner,) = ensemble.learners
    assert isinstance(learner, Learner)
    told = ensemble.finished(wall_s=0.0, stopped_by_budget=False).weights
    torch.testing.assert_close(told["values.weight"], learner.mean.views["values.weight"])
    assert not torch.equal(learner.online.views["values.weight"], told["values.weight"])
    assert network.reward_scale == ensemble.bars.reward_scale


def test_the_served_network_is_not_the_learners_own() -> None:
    ensemble, network = served(network="attention", group_width=4)
    network.double()(some_features().double(), torch.zeros(50, 1, dtype=torch.float64))
    for learner in ensemble.learners:
        assert learner.network.membership_FG.dtype is torch.float32
        assert learner.values(ensemble.table.start_rows).isfinite().all()


def test_the_members_of_all_threads_are_exported_in_their_order() -> None:
    one, two = (served(members=3, threads=threads)[0] for threads in (1, 2))
    first, second = (each.finished(wall_s=0.0, stopped_by_budget=False).weights for each in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batch_statistics_are_exported_with_the_weights_that_they_belong_to() -> None:
    learner = learner_of(small(norm="batch", weight_average=0.05), market(), seeds=(1, 2, 3))
    for _ in range(12):
        learner.update(torch.full((3,), 0.1))
    weights, buffers = learner.weights()
    rows = learner.bars.table.start_rows[:20]
    x_EBF = learner.bars.observe(torch.from_numpy(rows)).expand(3, -1, -1)
    told = learner.network.forward(weights, buffers, x_EBF).value_EBOK[..., 0]
    torch.testing.assert_close(told, learner.values(rows))
    assert not torch.equal(buffers["norm.0.mean"], learner.state()["buffers"]["norm.0.mean"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", HEADS, ids=str)
@pytest.mark.parametrize("shorts", [False, True])
def test_the_exported_model_says_what_torch_says(*, changes: dict[str, Any], shorts: bool) -> None:
    spec = tutorial_spec(3)
    series, width = walk(n=300), len(spec.names)
    features = np.random.default_rng(1).normal(size=(300, width))
    table = build_table({"AAA": series}, {"AAA": features}, ALL_COSTS, capital_usd=10_000.0)
    groups = tuple(spec.group_slices.values())
    settings = small(members=2, **changes)
    ensemble = Ensemble(table, settings, groups, seed=1, shorts=shorts, reward_scale=None, embargo_bars=5)
    network = run_to(ensemble, 12).finished(wall_s=0.0, stopped_by_budget=False).network
    policy = export_onnx(network, width)
    assert check_equal(network, policy, spec, table.features_TF, seed=0) <= 1e-5
    assert set(Model(policy, spec, network.targets).outputs) >= set(network.output_names)
    ensemble.learners[0].values(table.start_rows)  # the learner goes on after an export
