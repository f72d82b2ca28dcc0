"""The pyramid over a Hyena ViT: its maps, whose weights it takes, and what timm asks of a model of features."""

import copy
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from families import images
from timm.models import group_parameters, save_for_hf
from torch import nn

import hyena_vision  # noqa: F401  registers the models
from hyena_vision.models import HyenaViT, HyenaViTFPN

NAMES = timm.list_models("hyena*_fpn")
NAME = "hyena2d_vit_tiny_fpn"
SMALL = dict(img_size=64, embed_dim=24, depth=2, base_grid=4, filter_dim=8)
VIT = dict(img_size=64, embed_dim=24, depth=2, num_heads=2)


def pyramid(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, features_only=True, **{**SMALL, "fpn_dim": 16, **kwargs}).eval()


def save(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "weights.pth"), num_classes=7))


@pytest.mark.parametrize("name", NAMES)
def test_four_maps_of_every_name(name):
    model = timm.create_model(name, features_only=True, depth=1, device="meta", dtype=torch.bfloat16)
    maps = model(torch.empty(1, 3, 64, 96, device="meta", dtype=torch.bfloat16))
    assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.channels() == [256] * 4
    assert [y.shape for y in maps] == [(1, 256, 64 // r, 96 // r) for r in (4, 8, 16, 32)]
    assert all(y.dtype == torch.bfloat16 for y in maps)


def test_maps_are_those_of_vitdet():
    model = pyramid().double()
    x = images(1, 3, 48, 64).double()  # a grid of 3 x 4: the last map is rounded up
    trunk, levels = model.model, model.model.fpn
    tokens = trunk.blocks(trunk.patch_embed(x)).permute(0, 3, 1, 2)

    def norm(y, layer):
        return F.layer_norm(y.permute(0, 2, 3, 1), (y.shape[1],), layer.weight, layer.bias, 1e-6).permute(0, 3, 1, 2)

    def up(y, layer):
        rows = torch.einsum("bchw,cdij->bdhiwj", y, layer.weight)
        return rows.reshape(len(y), -1, 2 * y.shape[2], 2 * y.shape[3]) + layer.bias[:, None, None]

    for level in levels:
        for layer in level:
            if getattr(layer, "weight", None) is not None and layer.weight.ndim == 1:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
    pooled = F.max_pool2d(F.pad(tokens, (0, 0, 0, 1), value=-torch.inf), 2)
    four = up(F.gelu(norm(up(tokens, levels[0][0]), levels[0][1])), levels[0][3])
    for level, given, y in zip(levels, (four, up(tokens, levels[1][0]), tokens, pooled), model(x), strict=True):
        first, norm1, second, norm2 = level[-4:]
        expected = norm(F.conv2d(norm(F.conv2d(given, first.weight), norm1), second.weight, padding=1), norm2)
        torch.testing.assert_close(y, expected)


def test_classifier_is_a_plain_hyena_vit():
    """Weights included, so that both ways of training give what the other loads."""
    models = []
    for name, extra in (("hyena2d_vit_tiny", {}), (NAME, dict(fpn_dim=16))):
        torch.manual_seed(0)
        models.append(timm.create_model(name, num_classes=7, **SMALL, **extra).eval())
    plain, ours = models
    assert type(ours) is HyenaViT and ours.default_cfg["architecture"] == NAME
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert torch.equal(plain(images()), ours(images()))


def test_pyramid_has_no_part_in_features_and_logits():
    model, plain = (cls(num_classes=7, **SMALL).eval() for cls in (HyenaViTFPN, HyenaViT))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fpn.")})
    assert torch.equal(model(images()), plain(images()))
    final, maps = model.forward_intermediates(images(), indices=[1, 2], norm=True, output_fmt="NHWC")
    assert torch.equal(final, plain.forward_features(images()))
    assert [tuple(y.shape) for y in maps] == [(2, 8, 8, 256), (2, 4, 4, 256)]
    torch.testing.assert_close(maps[1].permute(0, 3, 1, 2), model.fpn[2](final.permute(0, 3, 1, 2)))


@pytest.mark.parametrize("source", ["hyena2d_vit_tiny", "vit_tiny_patch16_224"])
def test_trunk_takes_weights(source, tmp_path, caplog):
    trained = timm.create_model(source, num_classes=7, **(VIT if source.startswith("vit") else SMALL))
    with caplog.at_level(logging.WARNING):
        model = pyramid(**save(tmp_path, trained)).model
    theirs = {key.replace(".attn.", ".mixer."): value for key, value in trained.state_dict().items()}
    shared = [key for key in model.state_dict() if key in theirs]
    assert len(shared) == 2 + len(model.blocks) * (
        12 if source.startswith("vit") else len(model.blocks[0].state_dict())
    )
    assert all(torch.equal(model.state_dict()[key], theirs[key]) for key in shared)
    assert "fpn.*" in caplog.text and "blocks.*.mlp" not in caplog.text


def test_own_weights_come_back_whole(tmp_path):
    trained = pyramid(out_indices=(1, 3))
    save_for_hf(trained.model, tmp_path, model_args=dict(**SMALL, fpn_dim=16))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    for given, expected in zip(again(images()), trained(images()), strict=True):
        assert torch.equal(given, expected)


def test_classifier_takes_the_trunk_of_weights_with_a_pyramid(tmp_path, caplog):
    trained = HyenaViTFPN(num_classes=7, **SMALL).eval()
    classifier = timm.create_model(NAME, num_classes=7, **SMALL, **save(tmp_path, trained)).eval()
    assert torch.equal(classifier(images()), trained(images()))
    with caplog.at_level(logging.WARNING):
        pyramid(fpn_dim=256, **save(tmp_path, trained))
    assert not caplog.text


def test_pyramid_of_another_width_is_refused(tmp_path):
    trained = pyramid().model
    with pytest.raises(ValueError, match=r"fpn.0.4.weight has shape \(8, 6, 1, 1\), the checkpoint has shape \(16, 6"):
        pyramid(fpn_dim=8, **save(tmp_path, trained))


@pytest.mark.parametrize("indices", [(-1,), (0, 2)])
def test_chosen_maps_need_no_more(indices):
    expected, model = pyramid()(images()), pyramid(out_indices=indices).train()
    maps = model(images())
    for index, y in zip(indices, maps, strict=True):
        torch.testing.assert_close(y, expected[index])
    # A target, as the sum of squares of what a norm gives is fixed
    sum((y - torch.randn_like(y)).square().sum() for y in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        model = pyramid().train()
        model.model.set_grad_checkpointing(enable)
        maps = model(images())
        sum(y[..., 0].sum() for y in maps).backward()
        results.append([*maps, *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(results[0], results[1])


def test_parameter_groups_and_fresh_weights():
    model = HyenaViTFPN(**SMALL, device="meta", dtype=torch.float64)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["fpn.0.0.weight"] == layers["head.weight"] > layers["blocks.1.norm1.weight"]
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    fresh = HyenaViTFPN(**SMALL).state_dict()
    for key, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), key
        if key.startswith("fpn."):
            torch.testing.assert_close(tensor.std(), fresh[key].std().double(), rtol=0.5, atol=0.1, equal_nan=True)


def test_patch_size_and_strides_go_together():
    model = HyenaViTFPN(fpn_dim=8, **SMALL)
    model.set_input_size(img_size=32, patch_size=8)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]
    assert model.forward_intermediates(images(1, 3, 32, 32), intermediates_only=True)[0].shape[-1] == 16
    kept = copy.deepcopy(model.state_dict())
    for change in (lambda: model.set_input_size(patch_size=14), lambda: HyenaViTFPN(patch_size=14, **SMALL)):
        with pytest.raises(ValueError, match="patch_size of a model with a pyramid must be a multiple of 4, got .*14"):
            change()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


def test_compiles_whole_and_exports_with_free_sizes():
    """Of the pyramid; of Hyena blocks test_hyena_vit.py asks the same."""
    model = pyramid(depth=1, attn_blocks="all", num_heads=2)
    height, width = (torch.export.Dim(d, min=2, max=64) for d in ("height", "width"))
    shapes = ({2: 16 * height, 3: 16 * width},)
    program = torch.export.export(model, (images(2, 3, 96, 64),), dynamic_shapes=shapes).module()
    torch._dynamo.reset()
    compiled, x = torch.compile(model, fullgraph=True, backend="eager"), images(2, 3, 80, 48)
    with torch.no_grad():
        for call in (program, compiled):
            for given, expected in zip(call(x), model(x), strict=True):
                torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [NAME, "hyena_vit_tiny", "hpx_former_s18"])
def test_output_stride_is_refused_in_words(name):
    with pytest.raises(ValueError, match=f"{name} has the strides .* got output_stride=16; take a decoder"):
        timm.create_model(name, features_only=True, output_stride=16, device="meta")
