"""Shapes and laws of the networks: heads, normalisation, dueling, attention."""

from typing import Any

import numpy as np
import pytest
import torch
from learner_parts import GROUPS, small

from training.dqn.network import BATCH_NORM_RATE, Flat, Network, batch_values, described

COMBINATIONS = [
    {"network": network, "value_heads": heads, "dueling": dueling, "value_loss": loss, "norm": norm}
    for network in ("mlp", "attention")
    for heads in ("post_decision", "free")
    for dueling in (False, True)
    for loss, norm in (("huber", "none"), ("quantile", "layer"), ("categorical", "batch"))
]


def made(
    n_targets: int = 2, seeds: tuple[int, ...] = (1, 2), **changes: Any
) -> tuple[Network, dict[str, torch.Tensor]]:
    settings = small(**{"atoms": 3, "group_width": 4, "hidden": (6, 5), **changes})
    network = Network(settings, GROUPS, n_targets)
    return network, network.initial([torch.Generator().manual_seed(seed) for seed in seeds])


def inputs(rows: int = 7, members: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(members, rows, 3)).astype(np.float32))


@pytest.mark.parametrize("changes", COMBINATIONS, ids=lambda one: "-".join(str(value) for value in one.values()))
@pytest.mark.parametrize("n_targets", [2, 3])
def test_every_combination_gives_a_value_to_every_target(*, changes: dict[str, Any], n_targets: int) -> None:
    network, weights = made(n_targets, **changes)
    answer = network.forward(weights, network.initial_buffers(2), inputs())
    values = n_targets if changes["value_heads"] == "post_decision" else n_targets**2
    assert answer.value_EBOK.shape == (2, 7, values, 1 if changes["value_loss"] == "huber" else 3)
    assert (answer.attention_EBG is not None) == (changes["network"] == "attention")
    assert described(network)["weights"] == sum(one[0].numel() for one in weights.values())


@pytest.mark.parametrize("changes", COMBINATIONS, ids=lambda one: "-".join(str(value) for value in one.values()))
def test_a_member_answers_as_if_it_were_alone(changes: dict[str, Any]) -> None:
    network, weights = made(3, **changes)
    both = network.forward(weights, network.initial_buffers(2), inputs())
    second = {name: one[1:] for name, one in weights.items()}
    alone = network.forward(second, network.initial_buffers(1), inputs()[1:])
    torch.testing.assert_close(both.value_EBOK[1:], alone.value_EBOK, rtol=1e-5, atol=1e-6)


def test_an_mlp_is_layers_of_matrices() -> None:
    network, weights = made(hidden=(6, 5))
    weights = {
        name: torch.randn(one.shape, generator=torch.Generator().manual_seed(3)) for name, one in weights.items()
    }
    w = {name: one[0].double().numpy() for name, one in weights.items()}
    x = inputs()[0].double().numpy()
    for layer in (0, 1):
        x = np.maximum(x @ w[f"hidden.{layer}.weight"] + w[f"hidden.{layer}.bias"], 0.0)
    wanted = x @ w["values.weight"] + w["values.bias"]
    got = network.forward(weights, {}, inputs()).value_EBOK[0, :, :, 0]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_attention_is_the_papers_over_tokens_that_read_their_own_group() -> None:
    network, weights = made(network="attention", heads=2, group_width=4, hidden=(6,))
    weights = {
        name: torch.randn(one.shape, generator=torch.Generator().manual_seed(3)) for name, one in weights.items()
    }
    w = {name: one[0].double().numpy() for name, one in weights.items()}
    answer = network.forward(weights, {}, inputs())
    for place, x_F in enumerate(inputs()[0].double().numpy()):
        token = np.stack([x_F[group] @ w["embed.weight"][group] + w["embed.bias"][g] for g, group in enumerate(GROUPS)])
        token = np.maximum(token, 0.0)
        seen = (token - token.mean(1, keepdims=True)) / np.sqrt(token.var(1, keepdims=True) + 1e-5)
        query, key, value = np.split(seen @ w["attend.weight"] + w["attend.bias"], 3, axis=1)
        mixed, received = [], np.zeros(2)
        for head in (slice(0, 2), slice(2, 4)):
            score = np.exp(query[:, head] @ key[:, head].T / np.sqrt(2.0))
            share = score / score.sum(axis=1, keepdims=True)
            received += share.mean(axis=0) / 2.0
            mixed.append(share @ value[:, head])
        token = token + np.concatenate(mixed, axis=1) @ w["mix.weight"] + w["mix.bias"]
        hidden = np.maximum(token.ravel() @ w["hidden.0.weight"] + w["hidden.0.bias"][0], 0.0)
        wanted = hidden @ w["values.weight"] + w["values.bias"][0]
        np.testing.assert_allclose(answer.value_EBOK[0, place, :, 0], wanted, rtol=1e-3, atol=1e-3)
        assert answer.attention_EBG is not None
        np.testing.assert_allclose(answer.attention_EBG[0, place], received, atol=1e-4)


@pytest.mark.parametrize("heads", ["post_decision", "free"])
def test_dueling_advantages_have_mean_zero_around_the_common_value(heads: str) -> None:
    network, weights = made(3, dueling=True, value_heads=heads)
    value = network.forward(weights, {}, inputs()).value_EBOK[..., 0].reshape(2, 7, -1, 3)
    weights = dict(weights)
    bias = weights["values.bias"].clone()
    bias[..., -value.shape[2] :] += 4.0  # the common ones
    weights["values.bias"] = bias
    moved = network.forward(weights, {}, inputs()).value_EBOK[..., 0].reshape(2, 7, -1, 3)
    torch.testing.assert_close(moved, value + 4.0)
    bias = bias.clone()
    bias[..., : -value.shape[2]] += 4.0  # all advantages alike: no matter
    weights["values.bias"] = bias
    again = network.forward(weights, {}, inputs()).value_EBOK[..., 0].reshape(2, 7, -1, 3)
    torch.testing.assert_close(again, moved)
    for name in ("values.weight", "values.bias"):
        weights[name] = weights[name].clone()
        weights[name][..., -value.shape[2] :] = 0.0
    advantage = network.forward(weights, {}, inputs()).value_EBOK[..., 0].reshape(2, 7, -1, 3)
    torch.testing.assert_close(advantage.mean(dim=-1), torch.zeros(advantage.shape[:-1]), atol=1e-6, rtol=0.0)
    assert advantage.abs().max() > 0.01


def test_layer_normalisation_forgets_the_size_of_its_inputs() -> None:
    network, weights = made(norm="layer", hidden=(16,))
    one = network.forward(weights, {}, inputs()).value_EBOK
    other = network.forward(weights, {}, inputs() * 50.0).value_EBOK
    torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


def test_batch_normalisation_learns_by_the_batch_and_answers_by_what_it_remembers() -> None:
    network, weights = made(norm="batch", hidden=(6,))
    buffers = network.initial_buffers(2)
    raw = torch.baddbmm(weights["hidden.0.bias"], inputs(), weights["hidden.0.weight"])
    still = network.forward(weights, buffers, inputs())
    assert (buffers["norm.0.mean"] == 0.0).all()
    learning = network.forward(weights, buffers, inputs(), learning=True)
    torch.testing.assert_close(buffers["norm.0.mean"], BATCH_NORM_RATE * raw.mean(1, keepdim=True))
    torch.testing.assert_close(
        buffers["norm.0.variance"],
        1.0 + BATCH_NORM_RATE * (raw.var(1, keepdim=True, correction=0) - 1.0),
    )
    assert not torch.allclose(learning.value_EBOK, still.value_EBOK)
    shifted = network.forward(weights, buffers, inputs() + 3.0, learning=True)
    torch.testing.assert_close(shifted.value_EBOK, learning.value_EBOK, rtol=1e-3, atol=1e-4)


def test_a_member_starts_the_same_in_any_company_and_seeds_differ() -> None:
    for kind in ("mlp", "attention"):
        _, three = made(seeds=(5, 6, 7), network=kind)
        _, one = made(seeds=(6,), network=kind)
        assert all(torch.equal(three[name][1:2], one[name]) for name in one)
        assert not torch.equal(three["hidden.0.weight"][0], three["hidden.0.weight"][1])


def test_all_weights_are_views_of_one_tensor_in_their_places() -> None:
    network, weights = made(network="attention", norm="layer")
    flat = Flat(network, weights, "cpu")
    for name, one in weights.items():
        assert torch.equal(flat.views[name], one)
        assert torch.equal(flat.values_EW[:, flat.place(name)], one.reshape(2, -1))
    flat.values_EW.zero_()
    assert all((view == 0.0).all() for view in flat.views.values())
    with pytest.raises(KeyError):
        flat.place("nothing")


def test_units_that_never_fire_are_seen() -> None:
    network, weights = made(hidden=(6,))
    weights["hidden.0.bias"][:, :, 2] = -1e3
    active = network.forward(weights, {}, inputs(), watch=True).active
    assert not active[0][:, 2].any()


def test_the_mean_of_quantiles_is_their_mean() -> None:
    network, weights = made(value_loss="quantile")
    answer = network.forward(weights, {}, inputs())
    torch.testing.assert_close(batch_values(network, answer, None), answer.value_EBOK.sum(-1) / 3.0)
