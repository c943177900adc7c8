"""`agent` and `training` never import each other, but one configuration must mean one market to both."""

import pytest

from agent import exchange
from agent.settings import Settings
from training import data
from training.settings import TrainingConfiguration


@pytest.mark.parametrize("edge", [True, False])
def test_training_and_the_exchange_make_the_same_synthetic_market(*, edge: bool) -> None:
    content = {
        "symbols": ["AAA", "BBB"],
        "period": "1h",
        "exchange": {"synthetic": {"bars": 500, "seed": 5, "edge": edge}},
    }
    played = exchange.synthetic_settings(Settings.model_validate(content))
    assert data.synthetic_settings(TrainingConfiguration.model_validate(content)) == played


def test_without_symbols_both_take_the_same_ones() -> None:
    assert data.synthetic_settings(TrainingConfiguration()) == exchange.synthetic_settings(Settings())
