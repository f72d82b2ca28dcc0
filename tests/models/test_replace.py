"""Attention replaced in models of timm's ViT family: all that they are to timm they are afterwards."""

import copy
import inspect
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.models._features import FeatureGetterNet
from timm.models._hub import save_config_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

import hyena_vision
from hyena_vision import replace_attention, restore_attention
from hyena_vision.layers import HyenaAttention1d, HyenaAttention2d
from hyena_vision.models._replaced import ReplacedVisionTransformer

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
FIXED = dict(dynamic_img_size=False)
# What attention they have, and arguments that make them small and of a fixed size
MODELS = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_clip_224": {},
    "vit_little_patch16_reg4_gap_256": {},
    "vit_small_patch14_reg4_dinov2": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": dict(use_shared_rel_pos_bias=True),
    "beit3_base_patch16_224": {},
    "eva_large_patch14_196": {},
    "eva02_base_patch16_clip_224": {},
    "vit_medium_patch16_rope_reg1_gap_256": FIXED,
    "vit_small_patch16_rope_mixed_224": FIXED,
    "vit_small_patch16_dinov3": FIXED,
}
MIXER = dict(filter_dim=8)
# timm before 1.0.31 does not keep the arguments that a model was made with
KEEPS_ARGUMENTS = hasattr(timm.models._hub, "get_model_args")
TABLE = Path(__file__).parents[2] / "docs" / "models.md"


@torch.no_grad()
def small(name="vit_tiny_patch16_224", **kwargs):
    """A model all of whose weights have a part in its logits."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**TINY, **MODELS.get(name, {}), **kwargs})
    for key, parameter in model.named_parameters():
        if "gamma" in key:
            parameter.fill_(1)
        elif parameter.ndim > 1 or "bias" in key:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def images(*size, batch=2):
    return torch.randn(batch, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(1))


def attention_arguments(model):
    """What the model gives its first block beside the tokens."""
    grid = model.patch_embed.grid_size
    if getattr(model, "rope", None) is not None:
        rope = model.rope.get_embed(shape=grid)
        return dict(rope=rope[0] if rope.ndim > 2 else rope)
    if getattr(model, "rel_pos_bias", None) is not None:
        return dict(shared_rel_pos_bias=model.rel_pos_bias())
    return {}


def saved(model, report, folder, kwargs):
    arguments = {} if KEEPS_ARGUMENTS else dict(model_args={**TINY, **kwargs, **report.model_args})
    save_for_hf(model, folder, safe_serialization=True, **arguments)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("name", MODELS)
def test_each_model(name, tmp_path):
    """Weights taken, both directions, two sizes, a round trip, and back; one row of the table in the docs."""
    model, x = small(name), images()
    kind, logits, keys = type(model), model(x), list(model.state_dict())
    attention = model.blocks[0].attn
    before = [p.clone() for p in attention.parameters()]
    tokens = torch.randn(1, model.num_prefix_tokens + 16, 32, requires_grad=True)
    expected = attention(tokens, **attention_arguments(model))
    report = replace_attention(model, **MIXER)
    assert isinstance(model, kind) and all(type(block.attn) is HyenaAttention2d for block in model.blocks)

    y, count = model.blocks[0].attn(tokens, **attention_arguments(model)), model.num_prefix_tokens
    torch.testing.assert_close(y[:, :count], expected[:, :count], rtol=1e-4, atol=1e-5)
    for part in [*y[0, :count], y[0, count], y[0, -1]]:
        (grad,) = torch.autograd.grad(part.sum(), tokens, retain_graph=True)
        assert (grad[0].abs().amax(-1) > 0).all()

    converted = model(x)
    assert converted.isfinite().all() and not torch.allclose(converted, logits)
    loaded = timm.create_model(saved(model, report, tmp_path, MODELS[name]), pretrained=True).eval()
    assert type(loaded) is type(model) and torch.equal(loaded(x), converted)
    with pytest.raises(ValueError, match="got a copy or a loaded model"):
        restore_attention(loaded)
    pickled = pickle.loads(pickle.dumps(model))
    assert type(pickled) is type(model) and torch.equal(pickled(x), converted)

    model.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval()
    if hasattr(kind, "set_input_size"):
        model.set_input_size(img_size=(48, 16))
        assert model(images(48, 16)).isfinite().all()
        model.set_input_size(img_size=(32, 32))

    restore_attention(model)
    assert type(model) is kind and list(model.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(before, model.blocks[0].attn.parameters(), strict=True))
    attends = type(attention).__name__ if "beit." not in type(attention).__module__ else "BEiT's"
    row = rf"\| `{name}` \| `{kind.__name__}` \| {count} \| {re.escape(attends)}"
    assert re.search(row, TABLE.read_text("utf-8")), row


def test_restored_logits_are_those_of_before():
    for name in ("vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch16_rope_mixed_224"):
        model, x = small(name), images()
        expected = model(x)
        cfg, arguments = model.pretrained_cfg, getattr(model, "_model_args", None)
        replace_attention(model, blocks="first 0.5", **MIXER)
        replace_attention(model, "hyena1d", blocks=[1], **MIXER)
        restore_attention(model)
        assert torch.equal(model(x), expected)
        assert model.pretrained_cfg == cfg and getattr(model, "_model_args", None) == arguments
        assert "originals" not in vars(model)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [("all", "hhhh"), ("every 2", "ahah"), ("first 0.75", "hhha"), ("last 0.25", "aaah"), ([0], "haaa")],
)
def test_blocks(blocks, expected):
    model = small(depth=4)
    report = replace_attention(model, blocks=blocks, **MIXER)
    found = "".join("h" if isinstance(block.attn, HyenaAttention2d) else "a" for block in model.blocks)
    assert found == expected
    assert report.replaced == tuple(f"blocks.{i}.attn" for i, c in enumerate(expected) if c == "h")
    assert report.kept == tuple(f"blocks.{i}.attn" for i, c in enumerate(expected) if c == "a")


def test_report_says_what_was_done():
    model = small(depth=4, img_size=256)
    before = sum(p.numel() for p in model.parameters())
    report = replace_attention(model, blocks="last 0.5", **MIXER)
    after = sum(p.numel() for p in model.parameters())
    assert report.parameters == (before, after)
    assert sum(report.new_parameters.values()) == after - before
    assert set(report.new_parameters) == {"short_filter", "filter", "skip", "prefix_kernel"}
    tokens, dim = 32 * 32 + 1, 32
    assert report.flops[0] == 2 * (8 * tokens * dim**2 + 4 * tokens**2 * dim) > 2 * report.flops[1]
    text = str(report)
    assert text.startswith("VisionTransformer: HyenaAttention2d in place of 2 of 4 attention layers\n")
    assert f"parameters  {before:,} -> {after:,} (+" in text and "replaced    blocks.2.attn, blocks.3.attn" in text
    assert "no loss on logits trains the long convolution of block 3, the last" in text
    assert max(map(len, text.splitlines())) <= 160
    whole = replace_attention(small(depth=2), order=3, **MIXER)
    assert sum(whole.new_parameters.values()) == whole.parameters[1] - whole.parameters[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch16_dinov3", "rope turns the keys that prefix tokens read, as before"),
        ("beit_base_patch16_224", "the class token's part lives on as class_bias, the rest is gone"),
        ("beitv2_base_patch16_224", "rel_pos_bias: only its rows of prefix tokens are read"),
        ("eva02_base_patch16_clip_224", "keys had no bias; they have one now"),
    ],
)
def test_report_says_what_becomes_of_positions(name, expected):
    assert expected in str(replace_attention(small(name), **MIXER))


def test_settings_and_classes_reach_the_mixer(tmp_path):
    class Own(HyenaAttention1d):
        pass

    model = small()
    replace_attention(model, "hyena1d", blocks=[0], order=3, window="gaussian", **MIXER)
    layer = model.blocks[0].attn
    assert type(layer) is HyenaAttention1d and layer.order == 3 and layer.filter.window == "gaussian"
    assert layer.filter.base_size == (16,)
    replace_attention(model, Own, blocks=[1], base_grid=14, **MIXER)
    assert type(model.blocks[1].attn) is Own and model.blocks[1].attn.filter.base_size == (14 * 14,)
    if KEEPS_ARGUMENTS:
        with pytest.raises(ValueError, match="'replace' is not serializable"):
            save_config_for_hf(model, tmp_path / "config.json")


@cache
def converted_once():
    model = small(depth=3)
    report = replace_attention(model, blocks=[0, 2], **MIXER)
    return model, report


def converted():
    """A copy, which has no original layers."""
    return copy.deepcopy(converted_once()[0])


def test_copies_have_no_original_layers_and_say_so():
    model, _ = converted_once()
    old = model.originals.layers[0].qkv.weight
    assert not any("originals" in key for key in model.state_dict())
    assert not any(p is old for p in model.parameters())
    for other in (converted(), pickle.loads(pickle.dumps(model)), ModelEmaV3(model).module):
        assert type(other) is ReplacedVisionTransformer and torch.equal(other(images()), model(images()))
        with pytest.raises(ValueError, match="got a copy or a loaded model"):
            restore_attention(other)
    with pytest.raises(ValueError, match="must be one that replace_attention has changed, got VisionTransformer"):
        restore_attention(small())


def test_training_in_between_changes_no_original_layer():
    model, x = small(), images()
    old = {k: v.clone() for k, v in model.state_dict().items()}
    replace_attention(model, **MIXER)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).square().sum().backward()
    optimizer.step()
    model.double()
    restore_attention(model)
    assert all(module.training for module in model.modules())
    new = model.state_dict()
    for key, value in old.items():
        assert new[key].dtype == torch.float64
        assert torch.equal(new[key].float(), value) == (".attn." in key or key.startswith("fc_norm")), key


def test_ways_of_timm_to_look_inside():
    model, x = converted(), images()
    final, intermediates = model.forward_intermediates(x, norm=True, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(intermediates[-1], final[:, 1:])
    features = FeatureGetterNet(copy.deepcopy(model), out_indices=[0, 1])(x)
    assert [tuple(f.shape) for f in features] == [(2, 32, 4, 4)] * 2
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([0], prune_head=True)
    assert len(pruned.blocks) == 1
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 17, 32)
    if KEEPS_ARGUMENTS:  # older timm's own ViT cannot be traced either
        traced = timm.layers.create_feature_extractor(converted(), ["head"])
        torch.testing.assert_close(traced(x)["head"], converted()(x))
    pruned = small(depth=3)
    replace_attention(pruned, **MIXER)
    pruned.prune_intermediate_layers([0])
    restore_attention(pruned)
    assert type(pruned.blocks[0].attn) is timm.layers.Attention


def test_features_of_a_saved_model(tmp_path):
    model, report = converted_once()
    name = saved(model, report, tmp_path, dict(depth=3))
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=[1, 2]).eval()(images())
    expected = model.forward_intermediates(images(), indices=[1, 2], intermediates_only=True)
    torch.testing.assert_close(features, expected)
    model = timm.create_model(name, pretrained=True, num_classes=5, img_size=(48, 16)).eval()
    assert model(images(48, 16)).shape == (2, 5) and model.blocks[0].attn.grid_size == (6, 2)
    assert model.blocks[0].attn.filter.base_size == (4, 4)


@pytest.mark.skipif(not KEEPS_ARGUMENTS, reason="timm before 1.0.31 keeps no arguments")
def test_saved_after_changes(tmp_path):
    """A changed size and a changed head are those of the loaded model."""
    model = converted()
    model.set_input_size(img_size=(16, 48))
    model.reset_classifier(4)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images(16, 48)), model(images(16, 48)))
    loaded.set_input_size(img_size=32)
    assert loaded(images()).shape == (2, 4)


def test_registered_model_begins_with_weights_of_its_base(tmp_path):
    source = small()
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    overlay = dict(file=str(tmp_path / "vit.pth"), num_classes=3, custom_load=False)
    replace = [dict(mixer="hyena1d", blocks="first 0.5", **MIXER)]
    arguments = dict(base="vit_tiny_patch16_224", replace=replace, **TINY)
    model = timm.create_model("hyena_replaced", pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert type(model.blocks[0].attn) is HyenaAttention1d and type(model.blocks[1].attn) is timm.layers.Attention
    for key in ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.bias", "blocks.1.attn.qkv.weight", "head.weight"):
        assert torch.equal(model.get_parameter(key), source.get_parameter(key)), key
    assert model.pretrained_cfg["architecture"] == "hyena_replaced"
    restore_attention(model)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.pretrained_cfg["architecture"] == "vit_tiny_patch16_224"
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(
            "hyena_replaced", pretrained=True, pretrained_cfg_overlay=dict(url="", hf_hub_id=""), **arguments
        )


def test_filters_are_not_decayed_and_layers_have_their_depth():
    model = converted()
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            own = re.search(r"\.(filter|skip|prefix_kernel)\b", name)
            assert not (own and group["weight_decay"]), name
            if match := re.match(r"blocks\.(\d)", name):
                assert group["lr_scale"] == 0.5 ** (3 - int(match[1])), name
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.short_filter.weight", "blocks.1.attn.qkv.weight"} <= decayed


def test_gradient_checkpointing_changes_nothing():
    results = []
    for enable in (False, True):
        model = converted().train()
        model.set_grad_checkpointing(enable)
        logits = model(images())
        logits.sum().backward()
        results.append([logits, *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(results[0], results[1])


def test_hooks_change_nothing():
    """Each module that holds weights is called once, with hooks as without."""
    model, calls = converted(), {}
    expected = model(images())
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1))
    torch.testing.assert_close(model(images()), expected)
    layer = "blocks.0.attn"
    for part in ("", ".qkv", ".short_filter", ".filter", ".proj", ".proj_drop", ".out_norm"):
        assert calls[layer + part] == 1, part


def test_compiles_and_exports():
    torch._dynamo.reset()
    model, x = small(depth=1), images()
    replace_attention(model, **MIXER)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    x = images(batch=5)
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="torch.jit.trace"):
        torch.jit.trace(model, x)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_rope_mixed_224",
    ],
)
def test_any_size_where_the_model_takes_any(name, tmp_path):
    """The grid comes with each call: it is that of a model which is made for the size, and no neighbour's."""
    any_size = small(name, dynamic_img_size=True)
    report = replace_attention(any_size, blocks=[1], **MIXER)
    assert any_size.blocks[1].attn.grid_size is None and any_size.blocks[1].attn.filter.base_size == (4, 4)
    for size in ((16, 48), (48, 16), (32, 32), (40, 24)):
        x = images(*size)
        fixed = small(name, dynamic_img_size=False)
        replace_attention(fixed, blocks=[1], **MIXER)
        fixed.load_state_dict(any_size.state_dict())
        fixed.set_input_size(img_size=size)
        torch.testing.assert_close(any_size(x), fixed(x), rtol=1e-4, atol=1e-4)
        for norm in (False, True):
            arguments = dict(norm=norm, return_prefix_tokens=True, indices=[1])
            ours, theirs = (model.forward_intermediates(x, **arguments) for model in (any_size, fixed))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        arguments = dict(indices=[0], stop_early=True, intermediates_only=True, output_fmt="NLC")
        ours, theirs = (model.forward_intermediates(x, **arguments) for model in (any_size, fixed))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="the grid must be known, got tokens without one"):
        any_size.blocks[1](torch.randn(1, any_size.num_prefix_tokens + 16, 32))
    for masks in (dict(attn_mask=torch.ones(1)), dict(is_causal=True)):
        with pytest.raises(ValueError, match="Hyena takes no mask"):
            any_size.forward_features(x, **masks)
        with pytest.raises(ValueError, match="Hyena takes no mask"):
            any_size.forward_intermediates(x, **masks)
    name = saved(any_size, report, tmp_path, dict(dynamic_img_size=True))
    loaded = timm.create_model(name, pretrained=True).eval()
    assert torch.equal(loaded(x), any_size(x))
    any_size.set_input_size(img_size=48)
    assert any_size.blocks[1].attn.grid_size is None and any_size(x).isfinite().all()
    results = []
    for enable in (False, True):
        any_size.train().zero_grad()
        any_size.set_grad_checkpointing(enable)
        calls = []
        handle = any_size.blocks[1].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        any_size(x).square().sum().backward()
        handle.remove()
        assert len(calls) == 1 + enable
        results.append([p.grad.clone() for p in any_size.parameters() if p.grad is not None])
    torch.testing.assert_close(results[0], results[1])
    restore_attention(any_size)
    assert any_size(x).shape == ((2, 3))


@pytest.mark.slow
def test_any_size_compiled_and_exported():
    model = small(depth=1, dynamic_img_size=True)
    replace_attention(model, **MIXER)
    x = images(32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    height, width = (torch.export.Dim(d, min=2, max=64) for d in ("height", "width"))
    program = torch.export.export(model, (x,), dynamic_shapes=({2: 8 * height, 3: 8 * width},)).module()
    x = images(16, 72)
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)


def test_kept_kernels_follow_the_grid():
    model = timm.utils.reparameterize_model(converted())
    with torch.no_grad():
        first = model(images())
        model.set_input_size(img_size=(48, 16))
        model(images(48, 16))
        model.set_input_size(img_size=(32, 32))
        second = model(images())
    # The position embedding has been resampled to another grid and back
    assert first.shape == second.shape and model.blocks[0].attn.kept.entries.keys() >= {"4x4 torch.float32 cpu"}


def test_every_parameter_gets_a_gradient_also_without_prefix_tokens():
    """DDP waits for each: learnt rotary positions that no block reads any more are frozen until attention is back."""
    model = small("vit_small_patch16_rope_mixed_224", class_token=False, global_pool="avg")
    replace_attention(model, blocks=[0], **MIXER)
    assert model.rope.freqs.requires_grad
    replace_attention(model, blocks=[1], **MIXER)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model.train())
        for _ in range(2):
            wrapped(images()).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["rope.freqs"]
    restore_attention(model)
    assert model.rope.freqs.requires_grad


def test_weights_can_be_drawn_anew():
    model = converted()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight.std(), torch.tensor(32**-0.5), rtol=0.1, atol=0)


class _Own(timm.models.vision_transformer.VisionTransformer):
    pass


def _adapted():
    model = small()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[1].attn.qkv)
    return model


def _without_grid():
    model = small()
    model.patch_embed.grid_size = None
    return model


def _unchecked():
    model = small()
    model.patch_embed.strict_img_size = False
    return model


def _named(name, **kwargs):
    return lambda: timm.create_model(name, device="meta", **kwargs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_named("swin_tiny_patch4_window7_224"), TypeError, "got SwinTransformer, which attends within windows"),
        (_named("swinv2_tiny_window8_256"), TypeError, "got SwinTransformerV2, which attends within windows"),
        (_named("crossvit_tiny_240"), TypeError, "got CrossVit, which has cross attention"),
        (_named("samvit_base_patch16"), TypeError, "got VisionTransformerSAM, which attends within windows"),
        (_named("naflexvit_base_patch16_gap"), TypeError, "got NaFlexVit, which takes sequences with masks"),
        (_named("resnet18"), TypeError, "model must be one of timm's VisionTransformer, .* got ResNet$"),
        (_named("hyena2d_vit_tiny"), TypeError, "got HyenaViT$"),
        (_named("vit_tiny_patch16_224", features_only=True), TypeError, "got FeatureGetterNet, which is a wrapper"),
        (lambda: _Own(**TINY), TypeError, "got _Own$"),
        (_unchecked, ValueError, "must check the image size or the model have dynamic_img_size=True, got neither"),
        (lambda: small(patch_drop_rate=0.5), ValueError, "patch_drop_rate must be 0"),
        (lambda: small("eva02_tiny_patch14_224", patch_drop_rate=0.5), ValueError, "patch_drop_rate must be 0"),
        (_without_grid, ValueError, "patch_embed.grid_size must be known, got None"),
        (lambda: small(attn_layer="diff"), ValueError, "block 0 cannot be replaced: .* got .*DiffAttention"),
        (
            _named("vit_small_patch16_18x2_224"),
            ValueError,
            "block 0 must have one attention .* got ParallelThingsBlock",
        ),
        (_adapted, ValueError, "block 1 cannot be replaced: its qkv must be an untouched nn.Linear"),
    ],
)
def test_refusals_change_nothing(make, error, message):
    model = make()
    kind, attributes = type(model), set(vars(model))
    with pytest.raises(error, match=message) as caught:
        replace_attention(model)
    assert type(model) is kind and set(vars(model)) == attributes and "\n" not in str(caught.value)
    assert not any(isinstance(module, HyenaAttention2d) for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(mixer="attention"),
            ValueError,
            r"mixer must be one of \['hyena1d', 'hyena2d'\] or a subclass .* got 'att",
        ),
        (dict(mixer=nn.Linear), ValueError, "got <class 'torch.nn.modules.linear.Linear'>"),
        (dict(blocks="every 3"), ValueError, "blocks must name at least one of 2 blocks, got 'every 3'"),
        (
            dict(blocks="some"),
            ValueError,
            'blocks must be "all", "every n", "first f", "last f" or indices, got \'some\'',
        ),
        (dict(window="round"), ValueError, "round"),
        (dict(windw="none"), TypeError, "windw"),
        (dict(qkv_bias=False), TypeError, "qkv_bias"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, error, message):
    model = small()
    with pytest.raises(error, match=message):
        replace_attention(model, **arguments)
    assert type(model) is timm.models.vision_transformer.VisionTransformer


def test_a_model_that_timm_has_not_registered():
    model = timm.models.vision_transformer.VisionTransformer(**TINY).eval()
    expected = model(images())
    assert replace_attention(model, **MIXER).model_args["base"] is None
    assert not torch.equal(model(images()), expected)
    restore_attention(model)
    assert torch.equal(model(images()), expected)


def test_what_is_replaced_is_not_replaced_again():
    with pytest.raises(ValueError, match="block 0 must have attention, got HyenaAttention2d: it is replaced already"):
        replace_attention(converted())


def test_masks_are_refused_by_the_model():
    model = converted()
    if "attn_mask" in inspect.signature(model.forward_features).parameters:
        with pytest.raises(ValueError, match="Hyena takes no mask"):
            model.forward_features(images(), attn_mask=torch.ones(17, 17))
    with pytest.raises(AssertionError, match=r"Input height \(48\) doesn't match model \(32\)"):
        model(images(48, 16))


def test_public_names():
    assert hyena_vision.replace_attention is replace_attention and {"replace_attention"} <= set(hyena_vision.__all__)
