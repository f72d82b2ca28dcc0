"""Models that predict pixels."""

import pytest
import timm
import torch
from einops import rearrange
from timm.optim import create_optimizer_v2

from hyena_vision.models import DensePredictor

TINY = dict(img_size=16, patch_size=4, embed_dim=16, depth=1)
BASES = {
    "hyena2d_iso_tiny": TINY | dict(filter_dim=8),
    "hyena_vit_tiny": TINY | dict(filter_dim=8),
    "vit_tiny_patch16_224": TINY | dict(num_heads=2),
    "deit_tiny_distilled_patch16_224": TINY | dict(num_heads=2),
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    "resnet10t": {},
    "mobilenetv3_small_050": {},
}


def small(base: str = "vit_tiny_patch16_224", **kwargs):
    return timm.create_model("hyena_dense", backbone=base, **BASES[base], **kwargs)


@pytest.mark.parametrize("base", BASES)
def test_each_token_gives_the_pixels_of_its_patch_and_all_weights_learn(base):
    model, images = small(base, num_classes=2, in_chans=1), torch.randn(2, 1, 32, 64)
    if hasattr(model.backbone, "set_input_size"):
        model.set_input_size((32, 64))
    model.eval()
    features = model.forward_features(images)
    pixels = torch.einsum("b c h w, k c -> b k h w", features, model.head.weight[:, :, 0, 0])
    pixels = pixels + model.head.bias[:, None, None]
    expected = rearrange(pixels, "b (k p q) h w -> b k (h p) (w q)", p=model.reduction, q=model.reduction)
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (2, 2, 32, 64)
    model.train()
    model(images).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_patches_that_the_backbone_fills_up_are_cut_off():
    model = small("resnet10t").eval()
    images = torch.randn(1, 3, 40, 48)
    whole = torch.nn.functional.pixel_shuffle(model.head(model.forward_features(images)), 32)
    assert whole.shape == (1, 3, 64, 64)
    torch.testing.assert_close(model(images), whole[..., :40, :48])


def test_saved_and_loaded_by_timm(tmp_path):
    model = small("hyena2d_iso_tiny", num_classes=1, in_chans=1).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=dict(backbone="hyena2d_iso_tiny", **BASES["hyena2d_iso_tiny"]))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    images = torch.randn(2, 1, 16, 16)
    assert isinstance(loaded, DensePredictor) and torch.equal(loaded(images), model(images))


def test_begins_with_weights_of_its_base_or_its_own(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", **BASES["vit_tiny_patch16_224"])
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    overlay = dict(file=str(tmp_path / "vit.pth"), custom_load=False)
    model = small(pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    overlay = dict(state_dict=model.state_dict())
    again = small(pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_weights_that_are_not_decayed_are_those_of_the_base():
    model = small("hyena2d_iso_tiny")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1).param_groups
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert "head.weight" in decayed and not [name for name in decayed if ".filter." in name or "skip" in name]


@pytest.mark.parametrize("base", ["hyena2d_iso_tiny", "convnext_atto"])
def test_rates_fall_from_layer_to_layer_as_in_the_base(base):
    kwargs = dict(lr=1.0, weight_decay=0.0, layer_decay=0.5)
    scales = []
    for model in (small(base), timm.create_model(base, **BASES[base])):
        names = {id(parameter): name.removeprefix("backbone.") for name, parameter in model.named_parameters()}
        groups = create_optimizer_v2(model, "adamw", **kwargs).param_groups
        scales.append({names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]})
    ours, expected = scales
    assert ours.pop("head.weight") == ours.pop("head.bias") == 1 > min(ours.values())
    assert ours == {name: expected[name] for name in ours}


def test_new_head_and_checkpointing():
    model = small("hyena2d_iso_tiny").to(torch.float64)
    model.reset_classifier(5)
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        model.reset_classifier(0)
    assert model.get_classifier() is model.head
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.float64)).shape == (1, 5, 16, 16)


def test_over_a_model_that_has_a_base():
    replace = [dict(mixer="hyena2d", blocks="all", filter_dim=8)]
    model = timm.create_model(
        "hyena_dense", backbone="hyena_replaced", base="vit_tiny_patch16_224", replace=replace, num_heads=2, **TINY
    )
    assert type(model.backbone.blocks[0].attn).__name__ == "HyenaAttention2d"
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_no_such_base():
    with pytest.raises(ValueError, match="backbone must be the name of a model of timm, got 'maze'"):
        timm.create_model("hyena_dense", backbone="maze")
    with pytest.raises(ValueError, match="backbone must be a model with maps of features, got Linear"):
        DensePredictor(torch.nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="maps of features are those of vit_tiny_patch16_224 with features_only=True"):
        small(features_only=True)
