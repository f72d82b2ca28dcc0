"""What timm asks of a model, for every registered one; numerics on small ones."""

import fnmatch
import inspect
from functools import cache, partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import create_feature_extractor
from timm.models import group_parameters, save_for_hf
from torch import nn

import hyena_vision  # noqa: F401  registers the models
from hyena_vision.layers import Hyena2d, ImplicitFilter, mlp
from hyena_vision.models import HyenaViT, hyena_vit

NAMES = [*timm.list_models("hyena*vit*"), "hyena2d_iso_tiny"]
SMALL = dict(embed_dim=32, depth=4, filter_dim=8, img_size=64)


@pytest.fixture(params=["hyena_vit_tiny", "hyena2d_vit_tiny"])
def name(request):
    return request.param


def small_model(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, "num_classes": 7, **kwargs}).eval()


@cache
def on_meta(name):
    """A model as it is registered, without numbers; not to be changed."""
    return timm.create_model(name, device="meta").eval()


def images(*shape, **kwargs):
    return torch.randn(*(shape or (2, 3, 64, 64)), **kwargs)


def test_all_promised_models_are_registered():
    sizes = ["tiny", "small", "base", "large", "tiny_patch8", "small_patch8", "base_patch8"]
    hybrids = {f"hyena2d_vit_{size}_{kind}" for size in ("small", "base") for kind in ("hybrid", "late_attn")}
    plain = {f"hyena{d}_vit_{size}" for d in ("", "2d") for size in sizes} | {"hyena2d_iso_tiny"}
    assert set(NAMES) == plain | hybrids | {f"hyena2d_vit_{size}_fpn" for size in sizes[:3]}


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", [n for n in NAMES if "iso" not in n])
def test_parameter_count_is_that_of_the_vit(name):
    size = name.split("_vit_")[1].split("_")[0]
    ours, vit = (on_meta(n) for n in (name, f"vit_{size}_patch16_224"))
    assert ours.embed_dim == vit.embed_dim and len(ours.blocks) == len(vit.blocks)
    count, expected = (sum(p.numel() for p in m.parameters()) for m in (ours, vit))
    assert abs(count / expected - 1) < 0.03


def test_isotropic_model_has_a_fifth_of_a_million_parameters():
    model = timm.create_model("hyena2d_iso_tiny")
    assert 0.15e6 < sum(p.numel() for p in model.parameters()) < 0.25e6
    assert model(images(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_config_and_heads(name):
    """Shapes, dtype, device and names for every model, on the meta device; of fewer blocks where they are called."""
    model = on_meta(name)
    cfg = model.default_cfg
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert all(t.device.type == "meta" for _, t in tensors)
    assert not any(t.is_complex() for _, t in tensors)
    keys = model.state_dict()
    assert cfg["first_conv"] + ".weight" in keys and cfg["classifier"] + ".weight" in keys
    assert model.in_chans == cfg["input_size"][0]
    model = timm.create_model(name, depth=4, device="meta", dtype=torch.bfloat16)
    features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta", dtype=torch.bfloat16))
    grid = tuple(cfg["pool_size"])
    assert model.output_fmt == "NHWC" and features.shape == (1, *grid, model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    logits = model.forward_head(features)
    assert logits.shape == (1, cfg["num_classes"]) and logits.dtype == torch.bfloat16
    model.reset_classifier(0)
    assert model.num_classes == 0 and model.forward_head(features).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == (1, *grid, model.num_features)
    for kwargs, shape in ((dict(), (1, model.num_features)), (dict(global_pool=""), (1, *grid, model.num_features))):
        headless = timm.create_model(name, num_classes=0, depth=4, device="meta", dtype=torch.bfloat16, **kwargs)
        assert headless.forward_head(features).shape == shape
    with pytest.raises(TypeError, match="not_a_model_arg"):
        timm.create_model(name, not_a_model_arg=1, depth=4, device="meta")


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name):
    model = on_meta(name)
    names = [n for n, _ in model.named_parameters()]
    assert set(model.feature_info[0]) >= {"module", "num_chs", "reduction"} and len(model.feature_info) >= 3
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    order = ["patch_embed.proj.weight", *(f"blocks.{i}.mixer.qkv.weight" for i in range(len(model.blocks)))]
    assert sorted({layers[n] for n in order}) == [layers[n] for n in order]
    # As in timm's ViT the final norm goes with the last block.
    assert layers["head.weight"] > layers["norm.weight"] == layers[order[-1]]
    for pattern in model.no_weight_decay():
        assert fnmatch.filter(names, pattern), pattern
    filters = {id(p) for m in model.modules() if isinstance(m, ImplicitFilter) for p in m.parameters()}
    patterns = model.no_weight_decay()
    undecayed = {id(p) for n, p in model.named_parameters() if any(fnmatch.fnmatch(n, g) for g in patterns)}
    skips = {id(p) for n, p in model.named_parameters() if n.endswith(".skip")}
    assert filters and skips and filters | skips <= undecayed
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_pretrained_without_weights_fails(name):
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True, depth=4, device="meta")


def test_forward_and_backward(name):
    model = small_model(name).train()
    logits = model(images())
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, key


def test_any_size_and_rectangle_with_the_same_weights(name):
    model = small_model(name)
    for size in ((64, 64), (32, 96), (16, 16), (160, 48)):
        assert model(images(1, 3, *size)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"multiples of the patch size \(16, 16\), got \(65, 64\)"):
        model(images(1, 3, 65, 64))


def test_other_inputs(name):
    assert small_model(name, patch_size=8, in_chans=1)(images(1, 1, 64, 64)).shape == (1, 7)
    assert small_model(name, img_size=(32, 64))(images(1, 3, 32, 64)).shape == (1, 7)
    assert small_model(name, dynamic_img_pad=True)(images(1, 3, 65, 40)).shape == (1, 7)
    with pytest.raises(AssertionError, match=r"Input height \(32\) doesn't match model \(64\)"):
        small_model(name, dynamic_img_size=False)(images(1, 3, 32, 64))


def test_block_is_two_residual_branches(name):
    block = small_model(name).blocks[0]
    for norm in (block.norm1, block.norm2):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(2, 4, 4, 32)
    mixed = x + block.mixer(block.norm1(x))
    torch.testing.assert_close(block(x), mixed + block.mlp(block.norm2(mixed)))
    torch.testing.assert_close(
        block.norm1(1e-3 * x), torch.nn.functional.layer_norm(1e-3 * x, (32,), block.norm1.weight, eps=1e-6)
    )


def test_every_argument_reaches_its_part(name):
    rates = dict(drop_rate=0.1, proj_drop_rate=0.2, drop_path_rate=0.3)
    norms = dict(out_norm=True, mixer_norm_layer="layernorm", norm_layer="rmsnorm", init_values=0.5)
    model = small_model(name, mlp_ratio=3, act_layer="relu", **rates, **norms)
    first, last = model.blocks[0], model.blocks[-1]
    assert first.mlp.fc1.out_features == 96 and isinstance(first.mlp.act, nn.ReLU)
    assert model.head_drop.p == 0.1 and first.mixer.proj_drop.p == 0.2 and first.mlp.drop1.p == 0.2
    assert isinstance(first.drop_path1, nn.Identity)
    assert last.drop_path1.drop_prob == last.drop_path2.drop_prob == pytest.approx(0.3)
    assert (first.ls1.gamma == 0.5).all() and (first.ls2.gamma == 0.5).all()
    assert isinstance(first.mixer.out_norm, nn.LayerNorm) and not isinstance(first.norm1, nn.LayerNorm)


def test_weights_begin_as_in_vit(name):
    ours = timm.create_model(name, embed_dim=64, depth=1, img_size=64)
    for part in ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "head"):
        torch.testing.assert_close(ours.get_parameter(f"{part}.weight").std(), torch.tensor(0.02), rtol=0.1, atol=0)
        assert not ours.get_parameter(f"{part}.bias").any()
    fan_in = ours.patch_embed.proj.weight[0].numel()
    torch.testing.assert_close(ours.patch_embed.proj.weight.std(), torch.tensor(fan_in**-0.5), rtol=0.05, atol=0)
    assert not ours.patch_embed.proj.bias.any()


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_base_grid_is_that_of_the_default_input(name):
    model = on_meta(name)
    grid = tuple(model.default_cfg["pool_size"])
    assert model.blocks[0].mixer.filter.base_size == (grid if "2d" in name else (grid[0] * grid[1],))


def test_mixer_options_reach_mixer_and_filter(name):
    model = small_model(name, order=3, short_kernel_size=5, gate_act="silu", window="gaussian", coords="absolute")
    mixer = model.blocks[0].mixer
    assert mixer.order == 3 and mixer.short_filter.kernel_size[0] == 5
    assert mixer.filter.window == "gaussian" and mixer.filter.coords == "absolute"
    assert model(images()).isfinite().all()


def test_gradient_checkpointing_changes_nothing(name):
    results = []
    for enable in (False, True):
        model = small_model(name, drop_path_rate=0.0).train()
        model.set_grad_checkpointing(enable)
        calls = []
        model.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        x = images(generator=torch.Generator().manual_seed(1))
        logits = model(x)
        (logits.sum() + model.forward_intermediates(x, intermediates_only=True)[-1].sum()).backward()
        results.append([logits, *[p.grad for p in model.parameters()]])
        # With it each of the two passes runs a block again for its gradient.
        assert len(calls) == (4 if enable else 2)
    torch.testing.assert_close(results[0], results[1])


def test_norm_after_pooling_is_that_of_the_pooled_token(name):
    model, x = small_model(name, fc_norm=True, global_pool="max"), images()
    nn.init.uniform_(model.fc_norm.weight, 0.5, 1.5)
    tokens = model.blocks(model.patch_embed(x))
    assert torch.equal(model.forward_features(x), tokens)
    assert torch.equal(model(x), model.head(model.fc_norm(tokens.amax((1, 2)))))
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert layers["fc_norm.weight"] == layers["head.weight"]
    model.prune_intermediate_layers([1])
    model.forward_features(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_reset_classifier_keeps_device_dtype_mode_and_pooling(name):
    model = small_model(name, global_pool="max").double().train()
    expected = model.forward_head(model.forward_features(images().double()), pre_logits=True).shape
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64 and model.head.training and model.global_pool == "max"
    assert model.get_classifier() is model.head and model(images().double()).shape == (2, 3)
    assert expected == (2, 32)
    frozen = small_model(name).requires_grad_(False)
    frozen.reset_classifier(0)
    frozen.set_input_size(img_size=128)
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ValueError, match="got 'token'"):
        model.reset_classifier(5, "token")
    assert model.num_classes == 3
    evaluated = small_model(name)
    evaluated.reset_classifier(3, "max")
    assert not any(m.training for m in evaluated.modules())


def test_set_input_size(name):
    model = small_model(name)
    x = images(1, 3, 96, 96)
    expected = model(x)
    model.set_input_size(img_size=96)
    assert model.patch_embed.img_size == (96, 96)
    if hasattr(model, "_traits"):  # timm 1.0.31 and later keep a record
        assert model._traits["img_size"] == (96, 96)
    torch.testing.assert_close(model(x), expected)
    model.set_input_size(patch_size=8)
    assert model.patch_embed.proj.weight.shape[-1] == 8 and model.feature_info[0]["reduction"] == 8
    assert model(images(1, 3, 32, 32)).shape == (1, 7)


def test_features_only(name):
    model = timm.create_model(name, features_only=True, **SMALL)
    assert len(model(images(1, 3, 64, 96))) == 3
    model = timm.create_model(name, features_only=True, out_indices=(0, 2), **SMALL)
    for features, channels, reduction in zip(
        model(images(1, 3, 64, 96)), model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert features.shape == (1, channels, 64 // reduction, 96 // reduction)


def test_intermediates_agree_with_the_forward_pass(name):
    model = small_model(name)
    x = images()
    final, intermediates = model.forward_intermediates(x, norm=True)
    assert len(intermediates) == 4
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(intermediates[-1].permute(0, 2, 3, 1), final)
    calls = []
    handle = model.blocks[3].register_forward_hook(lambda *_: calls.append(1))
    two = model.forward_intermediates(x, indices=[0, 2], output_fmt="NHWC", stop_early=True, intermediates_only=True)
    assert not calls
    handle.remove()
    _, plain = model.forward_intermediates(x)
    torch.testing.assert_close(two, [plain[i].permute(0, 2, 3, 1) for i in (0, 2)])


def test_pruning_leaves_what_the_features_need(name):
    model, x = small_model(name), images()
    expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.blocks) == 2 and isinstance(model.norm, nn.Identity) and isinstance(model.head, nn.Identity)
    torch.testing.assert_close(model.forward_intermediates(x, indices=[0, 1], intermediates_only=True), expected)
    model.forward_features(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_fx_tracing(name):
    model, x = small_model(name), images()
    traced = create_feature_extractor(model, ["blocks.1", "head"])
    torch.testing.assert_close(traced(x)["head"], model(x))
    assert traced(x)["blocks.1"].shape == (2, 4, 4, 32)


def test_save_for_hf_and_back(name, tmp_path):
    model = small_model(name, order=3)
    save_for_hf(model, tmp_path, model_args=dict(**SMALL, order=3), safe_serialization=True)
    assert not list(tmp_path.glob("*.bin"))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images()
    assert loaded.num_classes == 7
    assert torch.equal(loaded(x), model(x))


def test_init_weights_after_to_empty(name):
    model = timm.create_model(name, device="meta", dtype=torch.float64, **SMALL).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    model.init_weights()
    for key, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), key
    torch.manual_seed(0)
    fresh = timm.create_model(name, dtype=torch.float64, **SMALL)
    for key, tensor in fresh.state_dict().items():
        given = model.state_dict()[key]
        torch.testing.assert_close(given.std(), tensor.std(), rtol=0.5, atol=0.2, msg=key, equal_nan=True)


@pytest.mark.parametrize("pad", [False, True])
def test_tokens_lie_contiguous(name, pad):
    """Else each norm would copy its input, and each residual sum would run across memory."""
    model = small_model(name, dynamic_img_pad=pad)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    model(images())
    assert seen == [True]


def test_dtype_change_after_a_forward_pass(name):
    model = small_model(name)
    model(images())
    assert model.to(torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16


def test_compiles_without_breaks_to_two_graphs_for_all_sizes(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_model(name, depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if "2d" in name else "eager")
    with torch.no_grad():
        for size in ((64, 64), (96, 96), (160, 160), (32, 128)):
            x = images(1, 3, *size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_inductor_gives_the_same_outputs_and_gradients():
    torch._dynamo.reset()
    model = small_model("hyena2d_vit_tiny", depth=1, img_size=224).train()
    x = images(2, 3, 224, 224)
    values = []
    for call in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        logits = call(x)
        logits.square().sum().backward()
        values.append([logits, *[p.grad.clone() for p in model.parameters()]])
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)


def test_exports_with_free_height_and_width(name):
    model = small_model(name, depth=1)
    height, width = (torch.export.Dim(d, min=2, max=64) for d in ("height", "width"))
    shapes = ({2: 16 * height, 3: 16 * width},)
    program = torch.export.export(model, (images(2, 3, 96, 64),), dynamic_shapes=shapes).module()
    x = images(2, 3, 160, 128)
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(mixer_layer="attention"), r"mixer_layer must be one of \['hyena1d', 'hyena2d'\], got 'attention'"),
        (dict(depth=0), "depth must be at least 1, got 0"),
        (dict(embed_dim=0), "embed_dim must be at least 1, got 0"),
        (dict(global_pool="token"), "got 'token'"),
        (dict(act_layer="nope"), "act_layer must be a class or the name of a layer of timm, got 'nope'"),
        (dict(order=1), "order must be at least 2, got 1"),
        (dict(filter_dim=0), "filter_dim must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HyenaViT(**{**SMALL, **kwargs})


def kinds(model):
    """A letter for each block: h for Hyena, a for attention."""
    return "".join("h" if isinstance(block.mixer, Hyena2d) else "a" for block in model.blocks)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (None, "hhhhhh"),
        ("all", "aaaaaa"),
        ("every 2", "hahaha"),
        ("every 4", "hhhahh"),
        ("first 0.5", "aaahhh"),
        ("last 0.25", "hhhhaa"),
        (-1, "hhhhha"),
        ([0, 4, -1], "ahhhaa"),
    ],
)
def test_blocks_with_attention(blocks, expected):
    assert kinds(HyenaViT(**{**SMALL, "depth": 6}, attn_blocks=blocks, device="meta")) == expected


def test_registered_hybrids():
    for size in ("small", "base"):
        assert kinds(on_meta(f"hyena2d_vit_{size}_hybrid")) == "ha" * 6
        assert kinds(on_meta(f"hyena2d_vit_{size}_late_attn")) == "h" * 9 + "a" * 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        *[
            (dict(attn_blocks=given), rf'attn_blocks must be "all", "every n", .* got {given!r}')
            for given in (
                "every 0",
                "every",
                "last",
                "first 1.5",
                "first -1",
                "last x",
                "none",
                "every 2.5",
                "first nan",
            )
        ],
        (dict(attn_blocks=[4]), r"indices of 4 blocks, got \[4\]"),
        (dict(attn_blocks=[0.5]), r"indices of 4 blocks, got \[0.5\]"),
        (dict(attn_blocks=[]), r"attn_blocks must name at least one of 4 blocks, got \[\]"),
        (dict(attn_blocks="every 5"), "must name at least one of 4 blocks, got 'every 5'"),
        (dict(attn_blocks="all", num_heads=5), "num_heads must divide embed_dim=32, got 5"),
        (dict(num_heads=2), "num_heads is for attn_blocks, which is None, got num_heads=2"),
    ],
)
def test_wrong_blocks_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HyenaViT(**SMALL, **kwargs, device="meta")


def test_attention_of_hybrids_is_that_of_vit():
    """Weights begin as there, an image of tokens is a sequence, and a ViT's checkpoint fits."""
    model = small_model("hyena2d_vit_small_hybrid", embed_dim=64, depth=2, num_heads=2)
    attention = model.blocks[1].mixer
    assert attention.num_heads == 2 and on_meta("hyena2d_vit_small_hybrid").blocks[1].mixer.num_heads == 6
    torch.testing.assert_close(attention.qkv.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0)
    assert not attention.qkv.bias.any() and not attention.proj.bias.any()
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2, img_size=64, num_classes=7)
    model.load_state_dict(hyena_vit.checkpoint_filter_fn(vit.state_dict(), model))
    x = torch.randn(2, 2, 3, 64)
    expected = vit.blocks[1].attn(x.flatten(1, 2)).unflatten(1, (2, 3))
    torch.testing.assert_close(attention(x), expected)
    logits = model.train()(images(2, 3, 32, 64))
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    traced = create_feature_extractor(model.eval(), ["head"])
    torch.testing.assert_close(traced(images(1, 3, 64, 64))["head"].shape, (1, 7))


@pytest.mark.parametrize("name", ["hyena_vit_tiny", "hyena2d_vit_tiny"])
def test_batch_of_none(name):
    model = timm.create_model(name, depth=1, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.empty(0, 3, 64, 64)).shape == (0, 3)


@pytest.mark.parametrize("training", [False, True])
def test_mlps_in_parts_give_the_same(training, monkeypatch):
    """Tokens in any memory order, the last part smaller."""
    block = hyena_vit.Block(6, partial(Hyena2d, filter_dim=4), init_values=0.5).train(training).double()
    parts = []
    monkeypatch.setattr(F, "gelu", lambda x, approximate, gelu=F.gelu: parts.append(len(x)) or gelu(x))
    contiguous = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    permuted = torch.randn(2, 6, 5, 7, dtype=torch.float64).permute(0, 2, 3, 1)
    for x in (contiguous, permuted):
        before = x.clone()
        expected = block(x).detach()
        monkeypatch.setattr(mlp, "PART_TOKENS", 32)
        parts.clear()
        with torch.no_grad():
            y = block(x)
        assert parts == [24, 24, 22] and y.shape == x.shape
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(x, before)
        monkeypatch.setattr(mlp, "PART_TOKENS", 2048)


def test_stochastic_depth_drops_samples_also_where_mlps_are_in_parts(monkeypatch):
    monkeypatch.setattr(mlp, "PART_TOKENS", 4)
    block = hyena_vit.Block(6, partial(Hyena2d, filter_dim=4), drop_path=0.5).train()
    x = torch.randn(64, 2, 2, 6)
    with torch.no_grad():
        block.mixer.proj.weight.zero_()
        changed = (block(x) != x).flatten(1)
    assert 0 < changed.any(1).sum() < 64 and torch.equal(changed.any(1), changed.all(1))
