"""One update after the other, against torch's own optimiser and the formulas of what moves behind it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import asked, learner_of, market, small, teacher_of
from numpy.typing import NDArray

from training.dqn.experience import Draw, Greedy
from training.dqn.learner import Learner
from training.market import Int

LR = torch.tensor([0.01, 0.01])
ONE_ROW = np.array([7])


class Fixed:
    """Experience that always gives the same batch, and keeps what it is told."""

    epsilon: float | None = None

    def __init__(self, draw: Draw) -> None:
        self.given = draw
        self.told: list[NDArray[np.float32]] = []

    def advance(self, greedy: Greedy, progress: float) -> None: ...

    def draw(self, progress: float) -> Draw:
        return self.given

    def update(self, draw: Draw, td_EB: NDArray[np.float32]) -> None:
        self.told.append(td_EB)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...


def myopic(**changes: Any) -> Learner:
    """Two members that know one row alone and look no further: every batch and every target is the same."""
    settings = small(**{"gamma": 0.0, "input_l1": 0.0, "weight_decay": 0.0, "weight_average": 0.0, **changes})
    return learner_of(settings, market(), seeds=(1, 2), rows=ONE_ROW)


def reference(learner: Learner, member: int, rates: list[float]) -> list[torch.Tensor]:
    """Weights of one member after torch's clipping and AdamW on torch's layers; input_l1 added by hand."""
    settings = learner.settings
    first, last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)
    views = learner.online.views
    with torch.no_grad():
        for layer, name in ((first, "hidden.0"), (last, "values")):
            layer.weight.copy_(views[f"{name}.weight"][member].T)
            layer.bias.copy_(views[f"{name}.bias"][member, 0])
    net = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    x_BF = learner.bars.observe(torch.from_numpy(ONE_ROW))
    y_BN = learner.bars.intrabar_TN[torch.from_numpy(ONE_ROW)]
    adam = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=settings.weight_decay)
    for rate in rates:
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        torch.nn.functional.huber_loss(net(x_BF), y_BN, delta=settings.huber_delta).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings.max_grad_norm)
        if first.weight.grad is not None:
            first.weight.grad += settings.input_l1 * first.weight.detach().sign()
        adam.step()
    return [first.weight.T, first.bias[None], last.weight.T, last.bias[None]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_decay": 0.3},
        {"input_l1": 0.05, "weight_decay": 0.1},
        {"max_grad_norm": 0.02},
        {"max_grad_norm": 0.02, "input_l1": 0.01, "huber_delta": 0.1},
    ],
    ids=str,
)
def test_every_member_steps_as_torchs_adamw_would(changes: dict[str, Any]) -> None:
    learner = myopic(**changes)
    rates = [0.02, 0.01, 0.005, 0.02, 0.03, 0.001]
    wanted = [reference(learner, member, rates) for member in (0, 1)]
    for rate in rates:
        learner.update(torch.tensor([rate, rate]))
    names = ("hidden.0.weight", "hidden.0.bias", "values.weight", "values.bias")
    for member in (0, 1):
        for name, one in zip(names, wanted[member], strict=True):
            torch.testing.assert_close(learner.online.views[name][member], one.detach(), rtol=1e-4, atol=2e-6)


def test_members_have_rates_of_their_own() -> None:
    learner = myopic()
    before = learner.online.values_EW.clone()
    learner.update(torch.tensor([0.0, 0.01]))
    moved = (learner.online.values_EW != before).any(dim=1)
    assert moved.tolist() == [False, True]


def test_the_pull_to_zero_is_of_the_first_layer_alone() -> None:
    plain, pulled = myopic(), myopic(input_l1=10.0)
    for learner in (plain, pulled):
        learner.update(LR)
    differs = {
        name: not torch.equal(plain.online.views[name], pulled.online.views[name]) for name in plain.online.views
    }
    assert differs == {"hidden.0.weight": True, "hidden.0.bias": False, "values.weight": False, "values.bias": False}


@pytest.mark.parametrize(("tau", "interval"), [(0.25, 1), (1.0, 1), (0.5, 3), (1.0, 4)])
def test_the_target_moves_by_tau_at_its_interval(tau: float, interval: int) -> None:
    learner = learner_of(small(tau=tau, target_update_interval=interval), market(), seeds=(1, 2))
    wanted = learner.target.values_EW.clone()
    for update in range(1, 9):
        learner.update(LR)
        if update % interval == 0:
            wanted = wanted + tau * (learner.online.values_EW - wanted)
        torch.testing.assert_close(learner.target.values_EW, wanted)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_running_mean_of_the_weights_is_a_plain_one_first(rate: float) -> None:
    learner = learner_of(small(weight_average=rate), market(), seeds=(1, 2))
    mean = torch.zeros_like(learner.mean.values_EW)
    for update in range(1, 9):
        learner.update(LR)
        share = max(rate, 1.0 / update) if rate else 1.0
        mean = (1.0 - share) * mean + share * learner.online.values_EW
        torch.testing.assert_close(learner.mean.values_EW, mean)
    torch.testing.assert_close(learner.weights()[0]["values.weight"], learner.mean.views["values.weight"])
    assert torch.equal(learner.mean.values_EW, learner.online.values_EW) == (rate == 0.0)


def test_statistics_of_batch_normalisation_move_into_the_target_and_the_mean_like_weights() -> None:
    learner = learner_of(small(norm="batch", tau=0.25, weight_average=0.5), market(), seeds=(1, 2))
    target = mean = torch.zeros(2, 1, 8)
    for update in range(1, 6):
        learner.update(LR)
        state = learner.state()
        online = state["buffers"]["norm.0.mean"]
        target = target + 0.25 * (online - target)
        mean = mean + max(0.5, 1.0 / update) * (online - mean)
        torch.testing.assert_close(state["target_buffers"]["norm.0.mean"], target)
        torch.testing.assert_close(learner.weights()[1]["norm.0.mean"], mean)
    assert online.abs().max() > 0.0


def test_asking_for_values_moves_no_statistics() -> None:
    learner = learner_of(small(norm="batch"), market())
    learner.update(LR[:1])
    before = {name: one.clone() for name, one in learner.state()["buffers"].items()}
    learner.values(learner.bars.table.start_rows)
    learner.look(learner.bars.table.start_rows)
    assert all(torch.equal(one, before[name]) for name, one in learner.state()["buffers"].items())


def batch(learner: Learner, *, pair: bool = False, weight: list[float] | None = None) -> Draw:
    rows: Int = learner.bars.table.start_rows[3:7]
    row_EB = torch.from_numpy(rows).expand(2, -1)
    pair_EB = torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2]]) if pair else None
    weight_EB = None if weight is None else torch.tensor([weight, weight])
    return Draw(row_EB, pair_EB, weight_EB, [np.arange(4)] * 2 if weight is not None else ())


def test_importance_weights_weigh_the_loss_and_not_what_is_surprising() -> None:
    even, odd = (learner_of(small(), market(), seeds=(1, 2)) for _ in range(2))
    one, other = Fixed(batch(even, weight=[1.0, 0.0, 0.0, 0.0])), Fixed(batch(odd, weight=[0.5, 0.0, 0.0, 0.0]))
    for learner, experience in ((even, one), (odd, other)):
        learner.experience = experience
        learner.update(LR)
    np.testing.assert_array_equal(one.told[0], other.told[0])
    assert (one.told[0] > 0.0).all()
    (full, half) = (learner.look(learner.bars.table.start_rows) for learner in (even, odd))
    assert full["loss"] is not None
    assert half["loss"] is not None
    np.testing.assert_allclose(half["loss"], np.array(full["loss"]) / 2.0, rtol=1e-5)


@pytest.mark.parametrize("heads", ["free", "post_decision"])
def test_a_transition_teaches_the_value_that_was_acted_out_and_no_other(heads: str) -> None:
    learner = learner_of(small(value_heads=heads, weight_decay=0.0), market(), seeds=(1, 2))
    learner.experience = Fixed(batch(learner, pair=True))
    before = learner.online.views["values.bias"].clone()
    learner.update(LR)
    moved = (learner.online.views["values.bias"] != before)[:, 0].tolist()
    every = [True] * (4 if heads == "free" else 2)
    long_to_flat = [False, False, True, False] if heads == "free" else [True, False]
    assert moved == [every, long_to_flat]


def test_the_td_error_of_a_transition_is_its_own_values() -> None:
    learner = learner_of(small(value_heads="free", gamma=0.0), market(), seeds=(1, 2))
    draw = batch(learner, pair=True, weight=[1.0] * 4)
    experience = learner.experience = Fixed(draw)
    rows = draw.row_EB[0].numpy()
    value_EBO = learner.values(rows, weights=learner.online)
    nothing = asked(np.zeros((len(learner.bars.table), 4, 1)))
    taught = teacher_of(learner.settings, learner.bars).teach(draw.row_EB, nothing, nothing).value_EBOK[..., 0]
    learner.update(LR)
    assert draw.pair_EB is not None
    wanted = (value_EBO - taught).gather(2, draw.pair_EB.unsqueeze(-1))[..., 0].abs()
    np.testing.assert_allclose(experience.told[0], wanted, rtol=1e-4, atol=1e-6)


def test_a_look_tells_of_the_updates_since_the_last_one() -> None:
    learner = learner_of(small(max_grad_norm=1e-6, network="attention", group_width=4), market(), seeds=(1, 2))
    for _ in range(3):
        learner.update(LR)
    told = learner.look(learner.bars.table.start_rows)
    assert told["grad_clipped"] == [1.0, 1.0]
    assert told["attention_entropy"] is not None
    assert all(0.0 <= one <= np.log(2.0) + 1e-6 for one in told["attention_entropy"])
    assert learner.look(learner.bars.table.start_rows)["grad_clipped"] == [0.0, 0.0]
