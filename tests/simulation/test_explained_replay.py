"""What moved a policy's decisions stands in the ledger of a replay that somebody will ask why, and changes nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx

from agent.replay import replay
from agent.settings import load
from brokers.calendar import calendar
from brokers.simulated.synthetic import SyntheticMarketSettings, generate
from strategies.features import FeatureSpec, Group
from training.dqn.onnx_branch import with_branch

TWO_GROUPS = FeatureSpec(
    (
        Group("returns", "returns", {"horizons": [1, 4], "unit": 16}),
        Group("longer", "returns", {"horizons": [16], "unit": 16}),
    ),
    300.0,
)


def _tiny_models() -> ModuleType:
    """The tiny ONNX policies of the strategies' tests, by path: test folders are no packages."""
    path = Path(__file__).resolve().parents[1] / "strategies" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_replay_is_explained_where_that_is_asked_for_and_trades_the_same(tmp_path: Path) -> None:
    tiny = _tiny_models()
    first = tiny.first_feature()
    part = tiny.linear_model({"attribution": np.stack([first, -first], axis=1)})
    model = with_branch(onnx.load_from_string(tiny.momentum_model()), onnx.load_from_string(part), "attribution")
    bundle = tiny.make_bundle(tmp_path / "bundle", model.SerializeToString(), feature_spec=TWO_GROUPS)
    settings = load(None, ["symbols=[A]", "strategy.name=dqn", f"strategy.bundle={bundle.path}"])
    series = generate(SyntheticMarketSettings(symbols=("A",), bars=120, period=settings.bar_period), calendar("24/7"))
    explained, plain = replay(settings, series, explains=True), replay(settings, series)
    assert explained.trades.height > 2
    assert explained.trades.equals(plain.trades)
    assert explained.decisions.drop("votes").equals(plain.decisions.drop("votes"))
    told = [json.loads(votes)["policy"] for votes in explained.decisions["votes"]]
    for vote in (vote for vote in told if "abstained" not in vote):
        assert vote["detail"]["attribution.returns"] == vote["q"]["1"] == -vote["detail"]["attribution.longer"]
    assert not any("attribution" in votes for votes in plain.decisions["votes"])
