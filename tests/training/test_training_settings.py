from pathlib import Path

import pytest

from brokers.configuration import ConfigurationError
from training.settings import PRESETS, TrainingConfiguration, TrainingSettings, load_training


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tandem.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, text: str, *overrides: str) -> TrainingConfiguration:
    return load_training(written(tmp_path, text), overrides, environ={})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-4),
        ("buffer_size", 10_000),
        ("batch_size", 64),
        ("gamma", 0.99),
        ("exploration_fraction", 0.2),
        ("features", "tutorial"),
    ],
)
def test_the_tutorial_preset_has_every_value_that_the_tutorial_states(name: str, value: object) -> None:
    assert getattr(TrainingSettings(preset="tutorial"), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", 100_000),
        ("learning_starts", 1_000),
        ("exploration_initial_eps", 1.0),
        ("exploration_final_eps", 0.1),
        ("target_update_interval", 500),
        ("tau", 1.0),
        ("train_freq", 4),
        ("gradient_steps", 1),
        ("hidden", (64, 64)),
        ("n_envs", 1),
        ("weight_decay", 0.0),
        ("reward_scale", 100.0),
        ("replay", "transitions"),
    ],
)
def test_the_tutorial_preset_has_every_value_of_the_tutorials_script(name: str, value: object) -> None:
    assert getattr(TrainingSettings(preset="tutorial"), name) == value


def test_the_tutorial_preset_pays_its_fee_and_nothing_else(tmp_path: Path) -> None:
    costs = load(tmp_path, "costs: {fee_bps: 5, half_spread_bps: 9}\ntraining: {preset: tutorial}").costs
    assert (costs.fee_bps, costs.half_spread_bps, costs.impact) == (30.0, 0.0, 0.0)


def test_a_cost_on_the_command_line_stands_over_the_presets(tmp_path: Path) -> None:
    costs = load(tmp_path, "", "training.preset=tutorial", "costs.fee_bps=1").costs
    assert (costs.fee_bps, costs.half_spread_bps) == (1.0, 0.0)


def test_the_default_preset_pays_the_configured_costs(tmp_path: Path) -> None:
    assert load(tmp_path, "costs: {fee_bps: 5, half_spread_bps: 9}").costs.half_spread_bps == 9.0


def test_a_value_of_the_file_stands_over_the_presets(tmp_path: Path) -> None:
    settings = load(tmp_path, "training: {preset: tutorial, gamma: 0.9}").training
    assert (settings.gamma, settings.buffer_size) == (0.9, 10_000)


def test_an_override_stands_over_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "training: {gamma: 0.9}", "training.gamma=0.8").training.gamma == 0.8


def test_sections_of_the_daemon_are_passed_over(tmp_path: Path) -> None:
    text = "risk: {max_position_fraction: 0.5}\nvenue: {kind: exchange}\nexchange: {port: 1, synthetic: {seed: 3}}"
    assert load(tmp_path, text).exchange.synthetic.seed == 3


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("training: {gama: 0.9}", "'gamma'"),
        ("training: {preset: tutorail}", "'tutorial'"),
        ("costs: {fee_bp: 1}", "'fee_bps'"),
        ("trainng: {gamma: 0.9}", "'training'"),
        ("calender: XNYS", "'calendar'"),
        ("exchange: {synthetic: {seeds: 1}}", "'seed'"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_right_one(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=f"did you mean {hint}"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["training: 3", "costs: 3", "training: {gamma: 1.5}", "period: 5x"])
def test_a_value_that_cannot_be_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        load(tmp_path, text)


def test_every_preset_is_a_valid_set_of_settings() -> None:
    assert {TrainingSettings(preset=name).preset for name in PRESETS} == set(PRESETS)


def test_the_training_file_that_ships_is_the_default_preset() -> None:
    file = Path(__file__).parents[2] / "configs" / "training.yaml"
    assert load_training(file, environ={}) == TrainingConfiguration()
