"""What is frozen, and that a pattern without effect is no silence."""

import pytest
import timm
import torch
from torch import nn

import hyena_vision  # noqa: F401
from hyena_vision.training.errors import ConfigError
from hyena_vision.training.freeze import count_parameters, freeze


def model() -> nn.Module:
    return timm.create_model("hyena2d_vit_tiny", img_size=32, embed_dim=16, depth=3, num_classes=4)


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (["backbone"], {"head"}),
        (["patch_embed", "blocks.0", "blocks.1"], {"pos_embed", "blocks.2", "norm", "head"}),
        (["blocks.[0-1].*"], {"patch_embed", "pos_embed", "blocks.2", "norm", "head"}),
    ],
)
def test_what_is_trained(patterns, trained):
    network = model()
    frozen = freeze(network, patterns)
    assert frozen == sum(p.numel() for p in network.parameters() if not p.requires_grad) > 0
    left = {name for name, p in network.named_parameters() if p.requires_grad}
    expected = {name for name in dict(network.named_parameters()) for part in trained if name.startswith(part)}
    assert left == expected


def test_averages_of_frozen_batch_norms_stay():
    network = timm.create_model("resnet18", num_classes=3)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    freeze(network, ["conv1", "bn1", "layer1"])
    assert count_parameters(network) == parameters
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith(("bn1", "layer1")) for name in changed)
    other = timm.create_model("resnet18", num_classes=3).eval()
    other.load_state_dict(dict(network.state_dict()))  # a model that is not frozen takes its weights
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(x), network.eval()(x))


def test_patterns_without_effect_are_refused():
    with pytest.raises(ConfigError, match=r"'block\.0' fits no parameter; the model has .*blocks"):
        freeze(model(), ["block.0"])
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model(), ["*"])
