"""Losses against their formulas, in plain numpy, one error at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import small

from training.dqn.losses import SMOOTHING_BINS, SUPPORT, support, value_losses


def loss(value: np.ndarray, taught: np.ndarray, **settings: Any) -> np.ndarray:
    """Losses of (B, O, K) values."""
    tensors = [torch.from_numpy(one[None]).double() for one in (value, taught)]
    return value_losses(small(**settings), *tensors)[0].numpy()


def huber(error: float, delta: float) -> float:
    return error * error / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)


@given(error=st.floats(-50.0, 50.0), delta=st.floats(0.01, 20.0))
def test_hubers_loss_is_a_parabola_that_turns_linear(*, error: float, delta: float) -> None:
    got = loss(np.full((1, 1, 1), error), np.zeros((1, 1, 1)), huber_delta=delta)
    assert got[0, 0] == pytest.approx(huber(error, delta), rel=1e-9, abs=1e-12)


def test_the_squared_loss_is_hubers_without_an_end() -> None:
    rng = np.random.default_rng(1)
    value, taught = rng.normal(0.0, 9.0, (2, 5, 3, 1))
    np.testing.assert_allclose(loss(value, taught, value_loss="mse"), loss(value, taught, huber_delta=1e6), rtol=1e-12)


@pytest.mark.parametrize("delta", [0.5, 5.0])
def test_the_quantile_loss_is_the_papers(delta: float) -> None:
    rng = np.random.default_rng(2)
    value, taught = rng.normal(0.0, 3.0, (4, 2, 5)), rng.normal(0.0, 3.0, (4, 2, 5))
    got = loss(value, taught, value_loss="quantile", atoms=5, huber_delta=delta)
    for b in range(4):
        for o in range(2):
            wanted = 0.0
            for i in range(5):
                level = (2 * i + 1) / 10
                for j in range(5):
                    error = taught[b, o, j] - value[b, o, i]
                    wanted += abs(level - (error < 0)) * huber(error, delta) / 5 / 5
            assert got[b, o] == pytest.approx(wanted, rel=1e-6)


def test_quantiles_learn_the_quantiles_of_what_they_are_taught() -> None:
    rng = np.random.default_rng(3)
    sample = torch.from_numpy(rng.exponential(2.0, 1_000))
    quantile = torch.zeros(1, 1, 1, 4, dtype=torch.float64, requires_grad=True)
    settings = small(value_loss="quantile", atoms=4, huber_delta=0.01)
    adam = torch.optim.Adam([quantile], lr=0.05)
    for _ in range(400):
        adam.zero_grad()
        value_losses(settings, quantile, sample.reshape(1, 1, 1, -1)).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    np.testing.assert_allclose(
        quantile.detach().ravel(), np.quantile(sample.numpy(), [0.125, 0.375, 0.625, 0.875]), atol=0.08
    )


def test_the_histograms_loss_is_the_cross_entropy_with_a_normal_around_the_target() -> None:
    rng = np.random.default_rng(4)
    atoms = 10
    logits = rng.normal(0.0, 2.0, (6, 1, atoms))
    taught = np.array([-3.1, 0.0, 7.7, 19.5, 26.0, -90.0]).reshape(6, 1, 1)
    got = loss(logits, taught, value_loss="categorical", atoms=atoms)
    width = 2 * SUPPORT / atoms

    def below(edge: float, centre: float) -> float:
        return 0.5 * (1.0 + math.erf((edge - centre) / (SMOOTHING_BINS * width * math.sqrt(2.0))))

    for b in range(6):
        centre = min(max(taught[b, 0, 0], -SUPPORT), SUPPORT)
        edges = [-SUPPORT + width * k for k in range(atoms + 1)]
        mass = np.diff([below(edge, centre) for edge in edges])
        mass /= mass.sum()
        log_share = logits[b, 0] - math.log(np.exp(logits[b, 0]).sum())
        assert got[b, 0] == pytest.approx(-(mass * log_share).sum(), rel=1e-6)


def test_the_bins_of_a_histogram_are_even_and_mean_what_they_were_taught() -> None:
    centres = support(small(value_loss="categorical", atoms=40), "cpu")
    assert centres is not None
    np.testing.assert_allclose(centres, np.arange(-19.5, 20.0, 1.0), atol=1e-5)
    logits = torch.zeros(1, 1, 1, 40, dtype=torch.float64, requires_grad=True)
    taught = torch.full((1, 1, 1, 1), 3.3, dtype=torch.float64)
    settings = small(value_loss="categorical", atoms=40)
    adam = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        adam.zero_grad()
        value_losses(settings, logits, taught).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert (torch.softmax(logits.detach()[0, 0, 0], 0) * centres).sum().item() == pytest.approx(3.3, abs=0.02)


@pytest.mark.parametrize("kind", ["huber", "mse", "quantile"])
def test_only_histograms_have_bins(kind: str) -> None:
    assert support(small(value_loss=kind), "cpu") is None
