"""How much each feature group moved a decision: by definition, as exported, and by what is left when groups go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import ensemble_of, market, run_to, small

from strategies.features import FeatureSpec, Group
from strategies.observation import model_inputs
from strategies.policy import ROWS_STEP, Model, greedy_targets
from training.data import Market
from training.dqn.attribution import GroupAttribution, deletion_curves
from training.dqn.ensemble import train_ensemble
from training.dqn.export import export_onnx
from training.dqn.pipeline import feature_spec, market_table
from training.dqn.served import EnsembleValues
from training.markets.mean_reverting import MeanReverting
from training.markets.predictor import Predictor
from training.markets.trained import Recipe, training_market
from training.markets.world import World
from training.validation import split_in_time

Array = np.ndarray[Any, np.dtype[np.float64]]

NETWORKS: list[dict[str, Any]] = [
    {},
    {"network": "attention", "group_width": 4},
    {"value_heads": "free"},
]


def served(*, shorts: bool, **changes: Any) -> EnsembleValues:
    ensemble = run_to(ensemble_of(small(members=2, belief=False, **changes), market(), shorts=shorts), 12)
    return ensemble.finished(wall_s=0.0, stopped_by_budget=False).network.eval()


def some_features(rows: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(rows, 3)).astype(np.float32))


def values(network: EnsembleValues, features: torch.Tensor, held: int) -> Array:
    """Return (B, T), in the order of `targets`."""
    with torch.no_grad():
        outputs = network(features, torch.full((len(features), 1), float(held)))
    return np.stack([one.numpy()[:, 0] for one in outputs[: len(network.targets)]], axis=1).astype(np.float64)


def defined(network: EnsembleValues, features: torch.Tensor, held: int) -> Array:
    """Return the attribution as the module defines it, by asking the network for each set of groups on its own."""
    mean_F = network.get_buffer("mean_F")
    targets, belongs_FG = list(network.targets), network.groups_FG.numpy() > 0
    groups = range(belongs_FG.shape[1])
    q_BT = values(network, features, held)
    chosen_B = greedy_targets(q_BT, targets, np.full(len(q_BT), held))
    others_BT = np.where(np.array(targets) == held, -np.inf, q_BT)
    second_B = np.array(targets)[others_BT.argmax(axis=1)]
    other_B = np.where(chosen_B == held, second_B, held)

    def worth(present: set[int]) -> Array:
        absent_F = ~belongs_FG[:, sorted(present)].any(axis=1)
        masked = torch.where(torch.from_numpy(absent_F), mean_F, features)
        masked_BT = values(network, masked, held)
        rows = np.arange(len(masked_BT))
        place = {target: k for k, target in enumerate(targets)}
        first, second = ([place[target] for target in which.tolist()] for which in (chosen_B, other_B))
        return masked_BT[rows, first] - masked_BT[rows, second]

    everything = set(groups)
    effects = [(worth({one}) - worth(set()) + worth(everything) - worth(everything - {one})) / 2.0 for one in groups]
    return np.stack(effects, axis=1)


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
@pytest.mark.parametrize("shorts", [False, True])
def test_an_attribution_is_the_mean_of_what_a_group_adds_alone_and_what_is_lost_without_it(
    *, changes: Mapping[str, Any], shorts: bool
) -> None:
    network = served(shorts=shorts, **changes)
    features = some_features()
    for held in sorted(network.targets):
        with torch.no_grad():
            told = network.explained(features, torch.full((len(features), 1), float(held))).numpy()
        expected = defined(network, features, held)
        assert np.abs(expected).max() > 0.0
        np.testing.assert_allclose(told, expected, atol=1e-6 * np.abs(expected).max() + 1e-9)


def test_a_group_that_is_not_read_moves_nothing() -> None:
    network = served(shorts=False)
    network.get_buffer("w_hidden_0_weight")[:, 1:] = 0.0
    with torch.no_grad():
        told = network.explained(some_features(), torch.zeros(40, 1))
    assert told[:, 0].abs().max() > 0.0
    assert told[:, 1].abs().max() == 0.0


@pytest.fixture(scope="module")
def exported() -> tuple[EnsembleValues, Model]:
    network = served(shorts=True, network="attention", group_width=4)
    spec = FeatureSpec((Group("returns", "returns", {"horizons": [1, 4, 16], "unit": 16}),), 300.0)
    return network, Model(export_onnx(network, 3), spec, network.targets)


@pytest.mark.slow
def test_the_exported_model_attributes_as_the_network_does(exported: tuple[EnsembleValues, Model]) -> None:
    network, model = exported
    assert model.explains
    for held in (-1, 0, 1):
        with torch.no_grad():
            wanted = network.explained(some_features(), torch.full((40, 1), float(held))).numpy()
        told = model.attribution(model_inputs(some_features().numpy(), np.full(40, held)))
        np.testing.assert_allclose(told, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_the_attribution_is_no_output_of_a_plain_question(exported: tuple[EnsembleValues, Model]) -> None:
    _, model = exported
    answer = model.run(model_inputs(some_features().numpy(), np.zeros(40, dtype=np.int8)))
    assert tuple(answer) == ("q_flat", "q_long", "q_short", "spread", "attention")


@pytest.mark.slow
def test_the_bits_of_an_answer_do_not_depend_on_how_many_are_asked(exported: tuple[EnsembleValues, Model]) -> None:
    _, model = exported
    features, positions = some_features().numpy(), np.resize([-1, 0, 1], 40)
    together = model.run(model_inputs(features, positions))
    for count in (1, 3, ROWS_STEP + 1):
        for begin in range(0, 40, count):
            part = slice(begin, begin + count)
            for name, value in model.run(model_inputs(features[part], positions[part])).items():
                np.testing.assert_array_equal(value, together[name][part])


# ---- deletion ---------------------------------------------------------------------------------------------------


def trained(world: World, changes: tuple[str, ...]) -> tuple[EnsembleValues, torch.Tensor, tuple[str, ...]]:
    """Return a network trained on a world, bars that it never saw, and the names of their groups."""
    recipe = Recipe("default", "default", changes, 30_000)
    configuration = recipe.configuration(world, 0)
    bars: Market = training_market(world, recipe.bars, 0)
    spec = feature_spec(bars, configuration.training)
    table = market_table(bars, spec, configuration)
    split = split_in_time(table, validation_fraction=0.2, memory_bars=spec.memory_bars)
    network = train_ensemble(
        split.train,
        # what is believed of so few bars is another question: a shrunk advantage has nothing to be taken apart
        configuration.training.dqn.model_copy(update={"belief": False}),
        tuple(spec.group_slices.values()),
        seed=0,
        shorts=world.shorts,
        embargo_bars=spec.memory_bars,
    ).network.eval()
    rows = split.validation.start_rows
    features = torch.from_numpy(np.asarray(table.features_TF[rows[:: len(rows) // 1_000]], dtype=np.float32))
    return network, features, spec.groups


def areas(network: EnsembleValues, features: torch.Tensor, order_BG: torch.Tensor) -> Array:
    """Return the mean advantage while groups go, as a share of the mean advantage with all of them, by row."""
    with torch.no_grad():
        left_BG = deletion_curves(network, features, torch.zeros(len(features), 1), order_BG).numpy()
    area: Array = left_BG[:, 1:].mean(axis=1) / left_BG[:, 0].mean()
    return area


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "attention"])
@pytest.mark.parametrize(
    "world", [MeanReverting(shorts=False), Predictor(shorts=False)], ids=["reverting", "predictor"]
)
def test_an_advantage_goes_fastest_with_the_groups_that_are_said_to_carry_it(world: World, network: str) -> None:
    values, features, groups = trained(world, (f"dqn.network={network}", "dqn.updates=300"))
    with torch.no_grad():
        told_BG = GroupAttribution(values)(features, torch.zeros(len(features), 1))
    rng = torch.Generator().manual_seed(0)
    drawn = [areas(values, features, torch.rand(told_BG.shape, generator=rng).argsort(dim=1)) for _ in range(5)]
    at_random, told = np.mean(drawn, axis=0), areas(values, features, told_BG.argsort(dim=1, descending=True))
    reversed_ = areas(values, features, told_BG.argsort(dim=1))
    gap_B = at_random - told
    blocks = gap_B[: len(gap_B) // 50 * 50].reshape(50, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    first = np.bincount(told_BG.argmax(dim=1).numpy(), minlength=len(groups)) / len(told_BG)
    ranked = sorted(zip(first.tolist(), groups, strict=True), reverse=True)
    print(  # noqa: T201 -- the numbers of docs/experiments.md
        f"{world.name} {network}: told {told.mean():.3f}, random {at_random.mean():.3f}, reversed "
        f"{reversed_.mean():.3f}, gap {gap_B.mean():.3f} +- {error:.3f}; first {ranked[:3]}"
    )
    assert gap_B.mean() - 4.0 * error > 0.0
    assert told.mean() < at_random.mean() < reversed_.mean()
    if isinstance(world, Predictor):
        assert ranked[0][1] in {"signals", "levels"}
