"""The compiled learner in the place of torch's."""

from typing import Any

import numpy as np
import pytest
import torch
from small_markets import table_of, walk

from training.dqn.bars import Bars, learnable_rows
from training.dqn.compiled_learner import CompiledLearner, why_not_compiled
from training.dqn.learner import Learner
from training.dqn.settings import DqnSettings
from training.dqn.state_codec import decode, encode
from training.errors import TrainingError

SETTINGS: dict[str, Any] = {"network": "mlp", "hidden": (12, 9), "members": 2, "batch_bars": 32}
SEEDS = (1, 1_001)


def market(*, shorts: bool = False) -> Bars:
    table = table_of(walk(n=300, seed=4))
    rows = learnable_rows(table)
    return Bars(table, rows, shorts=shorts, reward_scale=None, input_clip=5.0)


def learner(kind: type[Learner] | type[CompiledLearner], bars: Bars, **changed: Any) -> Any:
    rows = learnable_rows(bars.table)
    groups = [slice(0, bars.table.n_features)]
    gain_EF = torch.linspace(0.1, 1.0, 2 * bars.table.n_features).reshape(2, -1)
    return kind(DqnSettings(**(SETTINGS | changed)), bars, groups, [rows[:150], rows[100:]], SEEDS, gain_EF)


@pytest.mark.parametrize("shorts", [False, True], ids=["long or flat", "with shorts"])
def test_it_begins_where_torchs_learner_begins(*, shorts: bool) -> None:
    bars = market(shorts=shorts)
    ours, theirs = learner(CompiledLearner, bars), learner(Learner, bars)
    for (name, mine), (other, torchs) in zip(ours.weights()[0].items(), theirs.weights()[0].items(), strict=True):
        assert name == other
        torch.testing.assert_close(mine, torchs, rtol=0.0, atol=0.0)
    rows = learnable_rows(bars.table)
    torch.testing.assert_close(ours.values(rows), theirs.values(rows), rtol=1e-5, atol=1e-5)
    assert ours.look(rows).keys() == theirs.look(rows).keys()


@pytest.mark.parametrize("value_loss", ["huber", "mse"])
def test_it_takes_torchs_step_on_the_same_bars(value_loss: str) -> None:
    bars = market(shorts=True)
    ours, theirs = (learner(kind, bars, value_loss=value_loss) for kind in (CompiledLearner, Learner))
    for rate in (3e-3, 1e-3, 2e-3):
        lr_E = torch.tensor([rate, rate / 2])
        ours.update(lr_E)
        drawn = torch.from_numpy(np.stack([mlp._row_B for mlp in ours.members]))
        draw = theirs.experience.draw(0.0)
        theirs.experience.draw = lambda _, drawn=drawn, draw=draw: type(draw)(drawn)
        theirs.update(lr_E)
    for name, mine in ours.weights()[0].items():
        torch.testing.assert_close(mine, theirs.weights()[0][name], rtol=1e-4, atol=1e-5)
    rows = learnable_rows(bars.table)
    mine, torchs = ours.look(rows), theirs.look(rows)
    for name in ("loss", "grad_norm", "grad_clipped", "q_abs_max", "target_gap", "dead_units"):
        assert mine[name] == pytest.approx(torchs[name], rel=1e-3, abs=1e-6)


def test_its_state_goes_through_a_checkpoint_and_the_course_goes_on() -> None:
    bars = market()
    going = learner(CompiledLearner, bars)
    going.learn([[1e-3, 2e-3]] * 7)
    content, arrays = encode(going.state())
    going.learn([[1e-3, 2e-3]] * 5)
    resumed = learner(CompiledLearner, bars)
    resumed.restore(decode(content, arrays))
    resumed.learn([[1e-3, 2e-3]] * 5)
    rows = learnable_rows(bars.table)
    assert going.updates == resumed.updates == 12
    assert going.look(rows) == resumed.look(rows)
    for name, one in going.weights()[0].items():
        assert torch.equal(one, resumed.weights()[0][name])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"network": "attention"}, "network: attention"),
        ({"norm": "layer"}, "norm: layer"),
        ({"prioritised": True}, "prioritised: True"),
        ({"n_step": 2}, "n_step: 2"),
    ],
)
def test_what_only_torch_knows_is_refused(changed: dict[str, Any], told: str) -> None:
    assert why_not_compiled(DqnSettings(**(SETTINGS | changed))) == told
    with pytest.raises(TrainingError, match=told):
        learner(CompiledLearner, market(), **changed)


def test_the_defaults_of_an_mlp_are_served() -> None:
    assert why_not_compiled(DqnSettings(network="mlp")) is None
