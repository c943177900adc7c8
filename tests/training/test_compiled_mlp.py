"""The compiled learner against the same mathematics in torch, and against itself."""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_markets import table_of, walk

from training.dqn.compiled_mlp import CompiledMlp, drawable_rows
from training.errors import TrainingError
from training.market import MarketTable, build_table
from training.markets.bench import score
from training.markets.deciders import follow
from training.markets.mean_reverting import MeanReverting

BARS = 13
COST = -np.abs(np.subtract.outer(np.arange(3), np.arange(3))) * 0.002


def market() -> MarketTable:
    return table_of(walk(n=400, seed=2, events={120: 4.0}))


def member(table: MarketTable, *, shorts: bool = False, **changed: Any) -> CompiledMlp:
    """A member whose widths fit no vector and whose batch fits no block."""
    features = table.features_TF[table.start_rows].astype(np.float64)
    n = 3 if shorts else 2
    arguments: dict[str, Any] = {
        "hidden": (10, 33),
        "gamma": 0.9,
        "scale": 80.0,
        "cost_PN": COST[:n, :n],
        "mean_F": features.mean(axis=0),
        "deviation_F": np.maximum(features.std(axis=0), 1e-6),
        "gain_F": np.linspace(0.2, 1.0, table.n_features),
        "huber_delta": 1.0,
        "tau": 0.05,
        "weight_decay": 0.1,
        "grad_clip": 0.5,
        "batch_bars": BARS,
        "seed": 4,
        "input_clip": 2.0,
    }
    rows = changed.pop("rows", drawable_rows(table))
    return CompiledMlp(table, rows, shorts=shorts, **(arguments | changed))


def network(weights: Mapping[str, NDArray[np.float32]]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for name, matrix in weights.items():
        if name.endswith("weight"):
            layers += [torch.nn.Linear(matrix.shape[1], matrix.shape[0]), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return net


def inputs(table: MarketTable, rows: NDArray[np.int64], *, clip: float = 2.0) -> torch.Tensor:
    features = table.features_TF[table.start_rows].astype(np.float64)
    deviation = np.maximum(features.std(axis=0), 1e-6)
    z = (table.features_TF[rows] - features.mean(axis=0).astype(np.float32)) / deviation.astype(np.float32)
    gain = np.linspace(0.2, 1.0, table.n_features, dtype=np.float32)
    return torch.from_numpy(z).clamp(-clip, clip) * torch.from_numpy(gain)


def targets(mlp: CompiledMlp, table: MarketTable, rows: NDArray[np.int64]) -> torch.Tensor:
    """The definition, position by position, with the growths and costs recovered from the reward table."""
    online, frozen = network(mlp.weights(of="online")), network(mlp.weights(of="target"))
    reward, wanted = table.reward_TPN, mlp.targets
    with torch.no_grad():
        later_online = online(inputs(table, rows + 1)).double().numpy()
        later_frozen = frozen(inputs(table, rows + 1)).double().numpy()

    def growths(row: int, n: int) -> tuple[float, float]:
        """A and B: growth of an old and of a new position n."""
        if n == 0:
            return 0.0, 0.0
        both, into, away = reward[row, n + 1, n + 1], reward[row, 1, n + 1], reward[row, n + 1, 1]
        return (both + away - into) / 2.0, (both + into - away) / 2.0

    y = np.empty((len(rows), len(wanted)))
    for b, row in enumerate(rows):
        for i, n in enumerate(wanted):
            best = int(np.argmax(COST[: len(wanted), : len(wanted)][i] * mlp.scale + later_online[b]))
            m = wanted[best]
            cost = reward[row + 1, n + 1, m + 1] - growths(row + 1, n)[0] - growths(row + 1, m)[1]
            paid = growths(row, n)[1] + mlp.gamma * (growths(row + 1, n)[0] + cost)
            y[b, i] = paid * mlp.scale + mlp.gamma * later_frozen[b, best]
    return torch.from_numpy(y)


@pytest.mark.parametrize("shorts", [False, True], ids=["long or flat", "with shorts"])
@pytest.mark.parametrize("huber_delta", [100.0, 0.3], ids=["quadratic", "saturated"])
def test_the_gradient_is_autograds(*, shorts: bool, huber_delta: float) -> None:
    table = market()
    mlp = member(table, shorts=shorts, huber_delta=huber_delta)
    mlp.run(25, 3e-3)  # online and target network differ
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows = rng.choice(mlp.rows, BARS)
        online = network(mlp.weights(of="online"))
        errors = targets(mlp, table, rows).float()
        if huber_delta < 1.0:
            assert (online(inputs(table, rows)) - errors).abs().max() > huber_delta
        loss = torch.nn.functional.huber_loss(online(inputs(table, rows)), errors, delta=huber_delta)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        ours, gradient = mlp.gradient(rows)
        assert ours == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in online.named_parameters():
            assert parameter.grad is not None
            largest = float(parameter.grad.abs().max())
            np.testing.assert_allclose(gradient[name], parameter.grad.numpy(), rtol=1e-5, atol=1e-5 * largest)


def test_updates_are_torchs_adamw_with_a_clipped_norm_a_soft_target_and_a_running_mean() -> None:
    table = market()
    mlp = member(table, grad_clip=0.1, input_l1=0.02, weight_average=0.3)
    mean = network(mlp.weights())
    online, frozen = network(mlp.weights(of="online")), network(mlp.weights(of="target"))
    optimiser = torch.optim.AdamW(online.parameters(), lr=1.0, weight_decay=0.1)
    clipped = []
    for number, rate in enumerate((3e-3, 1e-3, 2e-3, 5e-4)):
        before = mlp.weights(of="online")
        frozen_before = mlp.weights(of="target")
        done = mlp.run(1, rate)
        rows = mlp._row_B.copy()
        probe = member(table)  # the networks as they were, to ask for the definition's targets
        probe.restore(probe.state() | {"online": before, "target": frozen_before})
        loss = torch.nn.functional.huber_loss(
            online(inputs(table, rows)), targets(probe, table, rows).float(), delta=1.0
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        norm = torch.nn.utils.clip_grad_norm_(online.parameters(), 0.1)
        first = next(online.parameters())
        assert first.grad is not None
        first.grad += 0.02 * first.detach().sign()
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        with torch.no_grad():
            for slow, share in ((frozen, 0.05), (mean, max(0.3, 1.0 / (number + 1)))):
                for old, new in zip(slow.parameters(), online.parameters(), strict=True):
                    old.lerp_(new, share)
        assert done.loss == pytest.approx(loss.item(), rel=1e-5)
        assert done.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert done.grad_clipped == float(norm.item() > 0.1)
        clipped.append(done.grad_clipped)
        for ours, theirs in (
            (mlp.weights(of="online"), online),
            (mlp.weights(of="target"), frozen),
            (mlp.weights(), mean),
        ):
            for name, parameter in theirs.named_parameters():
                np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=2e-5, atol=2e-6)
    assert 1.0 in clipped


def test_values_are_the_networks_outputs_for_any_number_of_rows() -> None:
    table = market()
    mlp = member(table, shorts=True)
    mlp.run(30, 3e-3)
    for count in (1, 5, 26, 101):
        rows = table.start_rows[-count:]
        for by in ("online", "target", "mean"):
            wanted = network(mlp.weights(of=by))(inputs(table, rows)).detach().numpy()
            np.testing.assert_allclose(mlp.values(rows, by=by), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mlp.values_of(table.observations_TG.copy(), rows), mlp.values(rows))


def test_dead_units_and_the_gap_to_the_target_network_are_told() -> None:
    table = market()
    mlp = member(table)
    weights = mlp.weights()
    weights["2.bias"][:11] = -1e3  # a third of the 33 units of the second layer
    mlp.load(weights)
    before = mlp.inspect(mlp.rows)
    first = network(weights)[:2](inputs(table, mlp.rows)).detach().numpy()
    second = network(weights)[:4](inputs(table, mlp.rows)).detach().numpy()
    dead = (first.max(axis=0) == 0.0).sum() + (second.max(axis=0) == 0.0).sum()
    assert before.dead_units == pytest.approx(dead / 43)
    assert before.target_gap == 0.0
    mlp.run(20, 1e-2)
    after = mlp.inspect(mlp.rows)
    apart = mlp.values(mlp.rows, by="online") - mlp.values(mlp.rows, by="target")
    assert after.target_gap == pytest.approx(float(np.sqrt((apart**2).mean())), rel=1e-5)
    assert after.q_abs_max == float(np.abs(mlp.values(mlp.rows, by="online")).max())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(np.array_equal(one, other))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    table = market()
    one, again, other = (member(table, seed=seed) for seed in (4, 4, 5))
    for mlp in (one, again, other):
        mlp.run(20, 1e-3)
    assert same(one.state(), again.state())
    assert not same(one.weights(), other.weights())


def test_updates_do_not_depend_on_how_they_are_cut_into_calls() -> None:
    table = market()
    rates = np.geomspace(1e-2, 1e-4, 30)
    whole, cut = member(table), member(table)
    done = whole.run(30, rates)
    parts = [cut.run(count, rates[begin : begin + count]) for begin, count in ((0, 1), (1, 12), (13, 17))]
    assert same(whole.state(), cut.state())
    assert whole.updates == 30
    assert done.loss == pytest.approx(sum(part.loss * part.updates for part in parts) / 30)
    assert len(done.td_S) == 30 * BARS * 2


def test_a_restored_member_goes_on_as_if_it_had_never_stopped() -> None:
    table = market()
    going = member(table)
    going.run(17, 1e-3)
    state = going.state()
    going.run(23, 1e-3)
    resumed = member(table, seed=99)
    resumed.restore(state)
    resumed.run(23, 1e-3)
    assert same(going.state(), resumed.state())


def test_members_in_threads_are_the_members_alone() -> None:
    table = market()
    alone = [member(table, seed=seed) for seed in range(3)]
    for mlp in alone:
        mlp.run(200, 1e-3)
    together = [member(table, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda mlp: mlp.run(200, 1e-3), together))
    assert all(same(one.state(), other.state()) for one, other in zip(alone, together, strict=True))


def test_padding_holds_nothing_after_many_updates() -> None:
    mlp = member(market())
    mlp.run(200, 1e-2)
    for flat in (mlp._online_P, mlp._target_P, mlp._mean_P, mlp._first_P, mlp._second_P):
        kept = flat.copy()
        for view in mlp._views(kept).values():
            view[...] = 0.0
        assert not kept.any()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"gamma": 1.0}, "gamma is 1.0"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"hidden": ()}, "hidden layers"),
        ({"batch_bars": 0}, "0 bars"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"cost_PN": COST}, r"cost_PN is \(3, 3\)"),
        ({"mean_F": np.zeros(1)}, "mean_F"),
        ({"deviation_F": np.zeros(5)}, "deviation_F"),
        ({"gain_F": np.zeros(1)}, "gain_F"),
        ({"rows": np.array([], dtype=np.int64)}, "at least one row"),
        ({"rows": np.array([399])}, "table of 400"),
        ({"rows": np.array([0])}, "row 0 and 0 others have no step"),
    ],
)
def test_arguments_out_of_bounds_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        member(market(), **changed)


def test_calls_out_of_bounds_are_refused_and_change_nothing() -> None:
    table = market()
    mlp = member(table)
    before = mlp.state()
    with pytest.raises(TrainingError, match="0 updates"):
        mlp.run(0, 1e-3)
    with pytest.raises(TrainingError, match="learning rates"):
        mlp.run(3, np.array([1e-3, 1e-3]))
    with pytest.raises(TrainingError, match="learning rates -1"):
        mlp.run(3, -1.0)
    with pytest.raises(TrainingError, match="give those of the same network"):
        mlp.load(member(table, hidden=(8,)).weights())
    with pytest.raises(TrainingError, match="give those of the same network"):
        mlp.restore(member(table, hidden=(8,)).state())
    with pytest.raises(TrainingError, match="batch of 13"):
        mlp.gradient(mlp.rows[:3])
    assert same(before, mlp.state())


def test_a_learner_that_diverges_says_so() -> None:
    mlp = member(market(), grad_clip=1e30)
    weights = mlp.weights()
    weights["4.bias"][0] = np.inf
    mlp.load(weights)
    with pytest.raises(TrainingError, match="gradient of update 1 is not a number: lower the learning rate"):
        mlp.run(5, 1e-3)


def test_the_deviation_of_a_reverting_price_is_traded_near_the_optimum() -> None:
    world = MeanReverting(shorts=False)
    bars = 60_000
    path = world.path(bars, 1, "training")
    noise = np.random.default_rng(0).normal(size=(bars, 7))
    table = build_table(
        {"A": path.series}, {"A": np.column_stack([path.state_T, noise])}, world.costs(), capital_usd=1.0
    )
    rows = drawable_rows(table)
    features = table.features_TF[rows]
    cost_PN = world.cost_table()[1:, 1:]
    mlp = CompiledMlp(
        table, rows, hidden=(32, 32), shorts=False, gamma=0.98, scale=100.0, cost_PN=cost_PN, tau=0.02,
        mean_F=features.mean(axis=0), deviation_F=features.std(axis=0), batch_bars=256, seed=1,
    )  # fmt: skip
    mlp.run(1_500, np.linspace(2e-3, 1e-4, 1_500))
    unseen = world.path(20_000, 2)
    observed = np.column_stack([unseen.state_T, np.random.default_rng(9).normal(size=(20_000, 8))])
    value_RN = mlp.values_of(observed.astype(np.float32), np.arange(19_999))
    best_PR = (cost_PN[:, None, :] * mlp.scale + value_RN).argmax(axis=2)
    decisions = follow(np.stack([best_PR[0], best_PR[0], best_PR[1]]))
    optimum = world.solve()
    assert 1.0 - score(world, optimum, unseen, decisions).regret / optimum.gain > 0.95


NARROW = """
import sys
import llvmlite.binding
every = llvmlite.binding.get_host_cpu_features
def narrow():
    features = every()
    for name in features:
        features[name] = features[name] and not name.startswith("avx512")
    return features
llvmlite.binding.get_host_cpu_features = narrow
from training import instructions
assert (instructions.LANES, instructions.ROWS) == (8, 4)
sys.path.insert(0, sys.argv[1])
from test_compiled_mlp import market, member
mlp = member(market(), shorts=True)
mlp.run(20, 1e-3)
print(sum(float(abs(array).sum(dtype="f8")) for array in mlp.weights().values()).hex())
"""


@pytest.mark.slow
def test_a_processor_with_narrower_vectors_learns_the_same(tmp_path: Path) -> None:
    mlp = member(market(), shorts=True)
    mlp.run(20, 1e-3)
    total = sum(float(abs(array).sum(dtype=np.float64)) for array in mlp.weights().values())
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", NARROW, str(here)], cwd=here.parents[1], capture_output=True, text=True, check=False,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float.fromhex(done.stdout.strip()) == pytest.approx(total, rel=1e-6)
