"""Blocks with many tokens compute again in the backward pass instead of keeping."""

from functools import partial

import pytest
import torch

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.models import hyena_vit

MIXERS = {name: partial(mixer, filter_dim=8, base_grid=4) for name, mixer in (("1d", Hyena1d), ("2d", Hyena2d))}


def run(block, x):
    """Output, all gradients, and the bytes kept for the backward pass, each piece of memory counted once."""
    kept = {}

    def count(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        # Held, so that no other tensor gets its address.
        return t

    x = x.clone().requires_grad_()
    block.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y = block(x)
    kept_bytes = sum(kept.values())
    y.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
    return y.detach(), {"x": x.grad, **gradients}, kept_bytes


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
    "options",
    [dict(), dict(proj_drop=0.3), dict(init_values=0.1, drop_path=0.5)],
    ids=["plain", "dropout", "drop-path"],
)
@pytest.mark.parametrize("training", [True, False])
def test_same_result_with_less_memory(name, options, training, monkeypatch):
    block = hyena_vit.Block(8, MIXERS[name], dtype=torch.float64, **options).train(training)
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    # The number from which on it is large.
    monkeypatch.setattr(hyena_vit, "RECOMPUTE_TOKENS", 65)
    y, gradients, kept = run(block, x)
    monkeypatch.setattr(hyena_vit, "RECOMPUTE_TOKENS", 64)
    again, other_gradients, kept_again = run(block, x)
    assert torch.equal(again, y)
    assert gradients.keys() == other_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[key], gradient, rtol=1e-12, atol=1e-14, msg=key)
    assert kept_again < 0.6 * kept


def test_nothing_is_computed_again_without_gradients(monkeypatch):
    monkeypatch.setattr(hyena_vit, "RECOMPUTE_TOKENS", 1)
    block = hyena_vit.Block(8, MIXERS["2d"]).eval()
    monkeypatch.setattr(block, "_forward_large", None)
    with torch.no_grad():
        block(torch.randn(1, 4, 4, 8))
