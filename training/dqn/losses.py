"""How a predicted value is compared with what it is taught.

Huber 1964; quantile regression with Huber's kernel (Dabney et al. 2018, "Distributional Reinforcement Learning with
Quantile Regression"); a histogram of a smoothed target, compared by cross-entropy (Imani & White 2018; Farebrother et
al. 2024, "Stop Regressing", arXiv 2403.03950).

Axes: E members, B bars, O values, K atoms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.dqn.settings import DqnSettings

SUPPORT = 20.0
"""A histogram of values reaches so many rewards' deviations to either side."""
SMOOTHING_BINS = 0.75
"""Standard deviation of a smoothed target, in widths of a bin (Farebrother et al. 2024, section 3.2)."""


def support(settings: DqnSettings, device: str) -> Tensor | None:
    """Return the centres of the bins of a categorical value, (K,); None for other losses."""
    if settings.value_loss != "categorical":
        return None
    edges = torch.linspace(-SUPPORT, SUPPORT, settings.atoms + 1, device=device)
    return (edges[1:] + edges[:-1]) / 2.0


def value_losses(settings: DqnSettings, value_EBOK: Tensor, taught_EBOK: Tensor) -> Tensor:
    """Return (E, B, O) losses.

    Args:
        settings: Which loss.
        value_EBOK: Predicted: means (K = 1), quantiles or logits.
        taught_EBOK: Targets: means (K = 1), or samples of the distribution for quantiles.
    """
    if settings.value_loss == "mse":
        return functional.mse_loss(value_EBOK[..., 0], taught_EBOK[..., 0], reduction="none") / 2.0
    if settings.value_loss == "huber":
        return functional.huber_loss(
            value_EBOK[..., 0], taught_EBOK[..., 0], reduction="none", delta=settings.huber_delta
        )
    if settings.value_loss == "quantile":
        return _quantile(value_EBOK, taught_EBOK, settings.huber_delta)
    return _categorical(value_EBOK, taught_EBOK[..., 0])


def _quantile(value_EBOK: Tensor, taught_EBOJ: Tensor, delta: float) -> Tensor:
    count = value_EBOK.shape[-1]
    level_K = (torch.arange(count, device=value_EBOK.device) + 0.5) / count
    error = taught_EBOJ.unsqueeze(-2) - value_EBOK.unsqueeze(-1)
    huber = functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
    weight = (level_K.unsqueeze(-1) - (error.detach() < 0.0).to(error.dtype)).abs()
    return (weight * huber).mean(dim=-1).sum(dim=-1) / count


def _categorical(logit_EBOK: Tensor, taught_EBO: Tensor) -> Tensor:
    count = logit_EBOK.shape[-1]
    edges = torch.linspace(-SUPPORT, SUPPORT, count + 1, device=logit_EBOK.device)
    width = 2.0 * SUPPORT / count
    centre = taught_EBO.clamp(-SUPPORT, SUPPORT).unsqueeze(-1)
    below = torch.special.ndtr((edges - centre) / (SMOOTHING_BINS * width))
    mass = below[..., 1:] - below[..., :-1]
    mass = mass / mass.sum(dim=-1, keepdim=True)
    loss_EBO: Tensor = -(mass * torch.log_softmax(logit_EBOK, dim=-1)).sum(dim=-1)
    return loss_EBO
