from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_models import (
    SPEC,
    WIDTH,
    first_feature,
    linear_model,
    logarithm_model,
    make_bundle,
    model_with_weights_outside,
    momentum_model,
)

from strategies import bundle as bundles
from strategies.bundle import Bundle, BundleError
from strategies.features import FeatureSpec, Group
from strategies.policy import EXPLAINED_MAX, BundlePolicy, Model, greedy_targets
from strategies.strategy import Abstention, ExitLevels, Observations, Opinion, Reason
from training.dqn.onnx_branch import with_branch

TWO_GROUPS = FeatureSpec(
    (
        Group("returns", "returns", {"horizons": [1, 4], "unit": 16}),
        Group("longer", "returns", {"horizons": [16], "unit": 16}),
    ),
    300.0,
)
CLOSE = datetime(2024, 3, 1, 12, tzinfo=UTC)


def ask(policy: BundlePolicy, firsts: Sequence[float], positions: Sequence[int]) -> list[Opinion | Abstention]:
    features = np.zeros((len(firsts), WIDTH))
    features[:, 0] = firsts
    observations = Observations(
        symbols=[f"S{place}" for place in range(len(firsts))],
        close_time=CLOSE,
        features_SF=features,
        positions_S=np.array(positions, dtype=np.int8),
    )
    return list(asyncio.run(policy.opinions(observations)))


def targets(answers: Sequence[Opinion | Abstention]) -> list[int]:
    return [answer.target for answer in answers if isinstance(answer, Opinion)]


def short_model() -> bytes:
    return linear_model(
        {"q_flat": np.zeros(WIDTH + 1), "q_long": first_feature(), "q_short": first_feature(-1)},
    )


def test_the_policy_is_greedy_and_says_its_values(tmp_path: Path) -> None:
    answers = ask(BundlePolicy(make_bundle(tmp_path / "b")), [0.5, -0.5], [0, 1])
    assert targets(answers) == [1, 0]
    assert isinstance(answers[0], Opinion)
    assert answers[0].q == {0: 0.0, 1: 0.5}
    assert answers[0].reason is Reason.POLICY_GREEDY


def test_ties_keep_the_position(tmp_path: Path) -> None:
    assert targets(ask(BundlePolicy(make_bundle(tmp_path / "b")), [0.0, 0.0], [0, 1])) == [0, 1]


def test_a_tie_without_the_position_takes_the_smaller_exposure() -> None:
    q = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert greedy_targets(q, (-1, 0, 1), np.array([1, -1])).tolist() == [0, 0]


def test_the_position_is_an_input(tmp_path: Path) -> None:
    stay = np.zeros(WIDTH + 1)
    stay[WIDTH] = 1.0
    model = linear_model({"q_flat": np.zeros(WIDTH + 1), "q_long": stay}, {"q_long": -0.5})
    assert targets(ask(BundlePolicy(make_bundle(tmp_path / "b", model)), [0.0, 0.0], [0, 1])) == [0, 1]


def test_a_policy_that_was_trained_with_shorts_takes_them(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", short_model(), targets=(-1, 0, 1))
    assert targets(ask(BundlePolicy(bundle), [-0.5], [1])) == [-1]


def test_a_policy_that_was_trained_with_shorts_is_refused_where_they_are_off(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", short_model(), targets=(-1, 0, 1))
    with pytest.raises(BundleError, match="never learned to go flat"):
        BundlePolicy(bundle, shorts=False)


def test_weights_outside_of_the_hashed_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, weights = model_with_weights_outside("weights.bin")
    (tmp_path / "weights.bin").write_bytes(weights)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="not a model"):
        Model(content, SPEC, (0, 1))


def test_a_row_with_nan_is_an_abstention_and_leaves_the_others_alone(tmp_path: Path) -> None:
    answers = ask(BundlePolicy(make_bundle(tmp_path / "b")), [np.nan, 0.5], [1, 0])
    assert isinstance(answers[0], Abstention)
    assert answers[0].reason is Reason.BAD_FEATURES
    assert targets(answers[1:]) == [1]


def test_a_value_that_is_no_number_is_an_abstention(tmp_path: Path) -> None:
    answers = ask(BundlePolicy(make_bundle(tmp_path / "b", logarithm_model())), [0.5, -200.0], [0, 1])
    assert isinstance(answers[0], Opinion)
    assert isinstance(answers[1], Abstention)
    assert answers[1].reason is Reason.MODEL_ERROR


def test_a_model_that_answers_with_nan_cannot_be_bundled(tmp_path: Path) -> None:
    model = linear_model({"q_flat": np.zeros(WIDTH + 1), "q_long": np.full(WIDTH + 1, np.nan)})
    with pytest.raises(BundleError, match="train it again"):
        make_bundle(tmp_path / "b", model)


def test_a_model_that_answers_its_canary_differently_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    manifest = json.loads(json.dumps(bundle.manifest))
    manifest["canary"]["q"]["q_long"][2] += 1e-3
    # what another runtime would compute: everything else is as it was written
    manifest["id"] = bundles._content_id(manifest)
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="computes differently"):
        BundlePolicy(Bundle.load(tmp_path / "b"))


def test_exits_and_explanations_come_with_the_opinion(tmp_path: Path) -> None:
    nothing = np.zeros(WIDTH + 1)
    model = linear_model(
        {
            "q_flat": nothing,
            "q_long": first_feature(),
            "exit_stop": nothing,
            "exit_take_profit": nothing,
            "spread": nothing,
            "attention": np.zeros((WIDTH + 1, 1)),
            "hidden": np.zeros((WIDTH + 1, 5)),
        },
        {"exit_stop": 0.02, "exit_take_profit": np.inf, "spread": 0.25},
    )
    (answer,) = ask(BundlePolicy(make_bundle(tmp_path / "b", model)), [1.0], [0])
    assert isinstance(answer, Opinion)
    assert answer.exits == ExitLevels(stop=pytest.approx(0.02), take_profit=None)
    assert answer.detail == {"spread": 0.25, "attention": 0.0}


def explained_policy(folder: Path, *, explains: bool = True) -> BundlePolicy:
    """Long is worth the first feature, and each of two groups is said to have moved it by twice that."""
    part = linear_model({"attribution": 2.0 * np.stack([first_feature(), first_feature()], axis=1)})
    model = with_branch(onnx.load_from_string(momentum_model()), onnx.load_from_string(part), "attribution")
    return BundlePolicy(make_bundle(folder, model.SerializeToString(), feature_spec=TWO_GROUPS), explains=explains)


def moved(answers: Sequence[Opinion | Abstention]) -> list[float | None]:
    return [answer.detail.get("attribution.returns") for answer in answers if isinstance(answer, Opinion)]


def test_an_answer_says_how_much_each_group_moved_it(tmp_path: Path) -> None:
    answers = ask(explained_policy(tmp_path / "b"), [0.5, -0.25], [0, 0])
    assert moved(answers) == [1.0, -0.5]


def test_of_many_rows_those_are_explained_first_that_move(tmp_path: Path) -> None:
    rows = 3 * EXPLAINED_MAX
    firsts = [1.0 if row % 5 == 4 else -1.0 for row in range(rows)]
    told = moved(ask(explained_policy(tmp_path / "b"), firsts, [0] * rows))
    explained = [row for row in range(rows) if told[row] is not None]
    assert len(explained) == EXPLAINED_MAX
    assert explained == sorted(sorted(range(rows), key=lambda row: (firsts[row] < 0, row))[:EXPLAINED_MAX])


def test_a_policy_that_nobody_asks_why_says_the_same_without_it(tmp_path: Path) -> None:
    one, other = explained_policy(tmp_path / "a"), explained_policy(tmp_path / "b", explains=False)
    asked, unasked = ask(one, [0.5, -0.25], [0, 1]), ask(other, [0.5, -0.25], [0, 1])
    assert moved(unasked) == [None, None]
    assert [(a.target, a.q) for a in asked if isinstance(a, Opinion)] == [
        (a.target, a.q) for a in unasked if isinstance(a, Opinion)
    ]


def test_of_quantiles_the_medians_alone_come_with_the_answer(tmp_path: Path) -> None:
    nothing = np.zeros(WIDTH + 1)
    names = ("favourable_q10", "favourable_q50", "favourable_q97.5", "adverse_q50", "adverse_q90", "exit_gain")
    model = linear_model({"q_flat": nothing, "q_long": first_feature(), **dict.fromkeys(names, nothing)})
    (answer,) = ask(BundlePolicy(make_bundle(tmp_path / "b", model)), [1.0], [0])
    assert isinstance(answer, Opinion)
    assert set(answer.detail) == {"favourable_q50", "adverse_q50", "exit_gain"}


@pytest.mark.parametrize("rows", [1, 2, 15, 17, 40])
def test_an_answer_does_not_depend_on_how_many_are_asked_for(rows: int, tmp_path: Path) -> None:
    policy = BundlePolicy(make_bundle(tmp_path / "b"))
    features = np.random.default_rng(0).normal(size=(40, WIDTH))
    together = policy.q_values(features, np.zeros(40, dtype=np.int8))
    alone = policy.q_values(features[:rows], np.zeros(rows, dtype=np.int8))
    np.testing.assert_array_equal(alone, together[:rows])


def test_large_batches_are_cut_and_give_the_same_values(tmp_path: Path) -> None:
    policy = BundlePolicy(make_bundle(tmp_path / "b"))
    features = np.random.default_rng(0).normal(size=(9_000, WIDTH))
    q = policy.q_values(features, np.zeros(9_000, dtype=np.int8))
    np.testing.assert_allclose(q[:, 1], features[:, 0], rtol=1e-6)


def test_no_symbols_give_no_answers(tmp_path: Path) -> None:
    assert ask(BundlePolicy(make_bundle(tmp_path / "b")), [], []) == []


def test_the_runtime_is_imported_only_where_a_model_runs() -> None:
    code = (
        "import sys, strategies.policy, strategies.bundle, strategies.baselines, strategies.performance;"
        "heavy = {'onnxruntime', 'onnx', 'torch', 'polars', 'exchange_calendars', 'numba'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_policy_file_that_changes_after_it_was_verified_is_not_served(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    content = bytearray(bundle.policy_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.policy_path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match="changed since it was verified"):
        BundlePolicy(bundle)
