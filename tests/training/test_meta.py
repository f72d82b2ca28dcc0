"""Models on the meta device, whose weights nobody draws."""

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hyena_vision  # noqa: F401
from hyena_vision.training.meta import meta_device


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["hyena2d_vit_tiny", "vit_tiny_patch16_224"])
def test_shapes_are_there_and_nothing_is_drawn(name):
    with meta_device(), torch.no_grad(), Calls() as calls:
        model = timm.create_model(name, depth=1).eval()
        logits = model(torch.zeros(2, 3, 224, 224))
    assert logits.shape == (2, 1000) and all(tensor.is_meta for tensor in (logits, *model.parameters()))
    assert not calls.names & {"aten::normal_", "aten::uniform_", "aten::erfinv_", "aten::clamp_"}
    assert torch.ones(2).uniform_(2, 3).min() >= 2  # elsewhere, numbers are drawn
