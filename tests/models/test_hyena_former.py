"""The HyenaPixel family against the outputs of its authors' code, and what timm asks of a model."""

import fnmatch
import math
from functools import cache

import pytest
import timm
import torch
from hyenapixel import SMALL, images, small_model
from timm.layers import create_feature_extractor
from timm.models import group_parameters, save_for_hf
from torch import nn

import hyena_vision  # noqa: F401  registers the models
from hyena_vision.layers import Hyena1d, Hyena2d, ImplicitFilter, mlp
from hyena_vision.models import HyenaFormer
from hyena_vision.models.hyena_former_weights import grid_side

NAMES = [f"{family}_former_{size}" for family in ("hpx", "hb") for size in ("s18", "b36")]
NAMES += ["hpx_former_s18_384", "c_hpx_former_s18", "hpx_a_former_s18", "hb_a_former_s18"]
# For the compiler, which takes a second for a block
TWO_STAGES = dict(depths=(1, 1), dims=(32, 32), filter_emb_dims=(4, 4), res_scale_init_values=(None, 1.0))


@pytest.fixture(params=["hpx_former_s18", "hb_former_s18", "c_hpx_former_s18", "hb_a_former_s18"])
def name(request):
    return request.param


@cache
def on_meta(name):
    """A model as it is registered, without numbers; not to be changed."""
    return timm.create_model(name, device="meta").eval()


def test_all_promised_models_are_registered():
    assert set(timm.list_models(module="hyena_former")) == set(NAMES)


def test_any_size_and_rectangle_with_the_same_weights(name):
    model = small_model(name)
    for size in ((64, 64), (33, 96), (16, 7), (161, 48)):
        assert model(images(1, 3, *size)).isfinite().all()
    with pytest.raises(AssertionError, match=r"Input height \(32\) doesn't match model \(64\)"):
        small_model(name, dynamic_img_size=False)(images(1, 3, 32, 64))


@pytest.mark.parametrize("size", [32, 57, 63, 64, 67, 97, 102])
def test_tokens_on_a_side_are_those_of_the_stages(size):
    model = small_model("c_hpx_former_s18")
    stages = model.forward_intermediates(images(1, 3, size, size), intermediates_only=True)
    assert [stage.shape[-1] for stage in stages] == [grid_side(size, index) for index in range(4)]


def test_set_input_size(name):
    model = small_model(name, dynamic_img_size=False).requires_grad_(False)
    expected = small_model(name)(images(1, 3, 96, 80))
    model.set_input_size(img_size=(96, 80))
    torch.testing.assert_close(model(images(1, 3, 96, 80)), expected)
    assert not any(p.requires_grad for p in model.parameters())
    if hasattr(model, "_traits"):  # timm 1.0.31 and later keep a record
        assert model._traits["img_size"] == (96, 80)


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_config_and_heads(name):
    model = on_meta(name)
    cfg = model.default_cfg
    assert cfg["hf_hub_id"].startswith("Spravil/") and cfg["tag"] == "westai_in1k"
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["mean"]) == (1.0, "bicubic", (0.485, 0.456, 0.406))
    assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
    for part in ("first_conv", "classifier"):
        assert cfg[part] + ".weight" in model.state_dict()
    small = dict(depths=(1, 1, 1, 1), device="meta")
    model = timm.create_model(name, dtype=torch.bfloat16, **small)
    features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta", dtype=torch.bfloat16))
    assert model.output_fmt == "NHWC" and features.shape == (1, *cfg["pool_size"], model.num_features)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    logits = model.forward_head(features)
    assert logits.shape == (1, 1000) and logits.dtype == torch.bfloat16
    model.reset_classifier(0)
    assert model.num_classes == 0 and model.forward_head(features).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == (1, *cfg["pool_size"], model.num_features)
    with pytest.raises(TypeError, match="not_a_model_arg"):
        timm.create_model(name, not_a_model_arg=1, **small)


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name):
    model = on_meta(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    order = ["stem.conv.weight"]
    for index, stage in enumerate(model.stages):
        order += [f"stages.{index}.blocks.{block}.norm1.weight" for block in range(len(stage.blocks))]
        if index:
            assert layers[f"stages.{index}.downsample.conv.weight"] <= layers[f"stages.{index}.blocks.0.norm1.weight"]
    assert [layers[n] for n in order] == sorted({layers[n] for n in order})
    assert layers["head.fc.fc2.weight"] > layers["head.norm.weight"] == layers[order[-1]]
    assert len(set(group_parameters(model, model.group_matcher(coarse=True), reverse=True).values())) == 6
    patterns = model.no_weight_decay()
    names = [n for n, _ in model.named_parameters()]
    assert all(fnmatch.filter(names, pattern) for pattern in patterns)
    filters = {id(p) for m in model.modules() if isinstance(m, ImplicitFilter) for p in m.parameters()}
    filters |= {id(m.skip) for m in model.modules() if isinstance(m, (Hyena1d, Hyena2d))}
    undecayed = {id(p) for n, p in model.named_parameters() if any(fnmatch.fnmatch(n, g) for g in patterns)}
    assert filters and filters <= undecayed


def test_forward_and_backward(name):
    model = small_model(name, drop_path_rate=0.1, drop_rate=0.1).train()
    model(images()).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


def test_gradient_checkpointing_changes_nothing(name):
    results = []
    for enable in (False, True):
        model = small_model(name).train()
        model.set_grad_checkpointing(enable)
        calls = []
        model.stages[2].blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        logits = model(images())
        logits.sum().backward()
        assert len(calls) == 1 + enable
        results.append([logits, *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(results[0], results[1])


def test_reset_classifier_keeps_device_dtype_mode_and_pooling(name):
    model = small_model(name, global_pool="max", drop_rate=0.3).double().train()
    model.reset_classifier(3)
    assert model.get_classifier() is model.head.fc and model.head.fc.fc2.weight.dtype == torch.float64
    assert model.head.training and model.global_pool == "max" and model.head.fc.head_drop.p == 0.3
    assert model(images().double()).shape == (2, 3)
    evaluated = small_model(name)
    evaluated.reset_classifier(3, "max")
    assert not any(m.training for m in evaluated.modules())
    with pytest.raises(ValueError, match="got 'token'"):
        model.reset_classifier(5, "token")
    assert model.num_classes == 3


def test_features_only(name):
    model = timm.create_model(name, features_only=True, **SMALL)
    assert model.feature_info.channels() == [32, 32, 64, 64] and model.feature_info.reduction() == [4, 8, 16, 32]
    for features, channels, reduction in zip(
        model(images(1, 3, 64, 96)), model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert features.shape == (1, channels, 64 // reduction, 96 // reduction)
    pruned = timm.create_model(name, features_only=True, out_indices=(1, 2), **SMALL)
    assert [f.shape[1] for f in pruned(images())] == [32, 64]
    sum(f.sum() for f in pruned(images())).backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_intermediates_agree_with_the_forward_pass(name):
    model, x = small_model(name), images()
    final, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(intermediates[-1].permute(0, 2, 3, 1), final)
    calls = []
    handle = model.stages[3].register_forward_hook(lambda *_: calls.append(1))
    two = model.forward_intermediates(x, [0, 2], output_fmt="NHWC", stop_early=True, intermediates_only=True)
    assert not calls
    handle.remove()
    torch.testing.assert_close(two, [intermediates[i].permute(0, 2, 3, 1) for i in (0, 2)])
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert model.num_features == 64 and len(model.stages) == 3
    torch.testing.assert_close(model.forward_intermediates(x, [0, 2], intermediates_only=True)[1], intermediates[2])


def test_fx_tracing(name):
    model, x = small_model(name), images()
    traced = create_feature_extractor(model, ["stages.1", "head.fc.fc2"])(x)
    torch.testing.assert_close(traced["head.fc.fc2"], model(x))
    assert traced["stages.1"].shape == (2, 8, 8, 32)


@pytest.mark.slow
def test_compiles_without_breaks_to_one_graph_for_all_sizes():
    """Mixers of both ranks. The way from a graph for one size to one for all is that of test_hyena_vit.py."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_model("c_hpx_former_s18", token_mixers=("hyena2d", "hyena1d"), **TWO_STAGES)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for size in ((160, 64), (96, 96), (128, 128)):  # of a square torch makes a graph for squares
            x = images(2, 3, *size)  # torch makes another graph where a convolution has fewer than 20480 numbers
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_exports_with_free_height_and_width():
    model = small_model("hb_a_former_s18", token_mixers=("hyena1d", "attention"), **TWO_STAGES)
    height, width = (torch.export.Dim(d, min=2, max=64) for d in ("height", "width"))
    shapes = ({2: 8 * height, 3: 8 * width},)
    program = torch.export.export(model, (images(2, 3, 96, 64),), dynamic_shapes=shapes).module()
    x = images(2, 3, 160, 128)
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)


def test_save_for_hf_and_back(name, tmp_path):
    model = small_model(name)
    save_for_hf(model, tmp_path, model_args=SMALL, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.num_classes == 7 and torch.equal(loaded(images()), model(images()))


def test_dtype_change_after_a_forward_pass(name):
    model = small_model(name)
    model(images())
    assert model.to(torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16


def test_weights_begin_as_in_the_original():
    small = dict(depths=(1, 1, 1, 1))
    model = timm.create_model("hpx_former_s18", **small)
    mixer = model.stages[0].blocks[0].token_mixer
    for part in (mixer.qkv, mixer.short_filter, mixer.filter.out, mixer.filter.hidden[1], model.head.fc.fc1):
        torch.testing.assert_close(part.weight.std(), torch.tensor(0.02), rtol=0.1, atol=0)
        assert part.bias is None or not part.bias.any()
    # In their code: linspace(ln 0.01 / 1.5, ln 0.01 / 0.3, dim) / 111, times distances in pixels
    first, last = (math.log(100) / share / 111 * 56 for share in (1.5, 0.3))
    torch.testing.assert_close(mixer.filter.decay[[0, -1]], torch.tensor([first, last]))
    moved = timm.create_model("hpx_former_s18_384", **small).stages[0].blocks[0].token_mixer.filter
    torch.testing.assert_close(moved.decay, mixer.filter.decay / 56 * 96)
    assert not mixer.filter.shift.any()
    # sin and cos of columns 0, 1, then of rows
    expected = torch.tensor([[0.0, math.sin(1)], [1.0, math.cos(1)]])
    torch.testing.assert_close(mixer.filter.z[:2, 0, :2], expected)
    torch.testing.assert_close(mixer.filter.z[16:18, :2, 0], expected)


def test_weights_of_1d_mixers_begin_as_in_the_original():
    model = small_model("hb_former_s18", base_img_size=32)
    mixer = model.stages[2].blocks[0].token_mixer
    # PositionalEmbedding(9, 7, is_causal=False) of their code, for 2 x 2 tokens
    ramp = torch.tensor([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0])
    torch.testing.assert_close(mixer.filter.z[0], ramp)
    cosines = [math.cos(2 * math.pi * i / 7 * (1e-4 + (3 - 1e-4) / 3)) for i in range(7)]
    sines = [-math.sin(2 * math.pi * i / 7 * 3) for i in range(7)]
    torch.testing.assert_close(mixer.filter.z[[2, 8]], torch.tensor([cosines, sines]), rtol=1e-4, atol=1e-5)
    # exp(-t |deltas|), t = 1 after three steps
    torch.testing.assert_close(mixer.filter.decay[0], torch.tensor(math.log(100) / 1.5 / 3 * 4))
    moved = small_model("hb_former_s18", base_img_size=64, table_img_size=32).stages[2].blocks[0].token_mixer.filter
    torch.testing.assert_close(moved.decay, mixer.filter.decay / 4 * 16)


def test_init_weights_after_to_empty(name):
    model = timm.create_model(name, device="meta", **SMALL).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    model.init_weights()
    for key, tensor in small_model(name, num_classes=1000).state_dict().items():
        given = model.state_dict()[key]
        assert given.isfinite().all(), key
        if tensor.numel() > 1:
            torch.testing.assert_close(given.std(), tensor.std(), rtol=0.5, atol=0.2, msg=key)
        elif not tensor.is_floating_point():
            assert torch.equal(given, tensor)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(token_mixers=("hyena",) * 4), ValueError, "got 'hyena'"),
        (dict(dims=(32, 32)), ValueError, r"dims must have one value for each of 4 stages, got \(32, 32\)"),
        (dict(global_pool="token"), ValueError, "got 'token'"),
        (dict(token_mixers=("attention",) * 4, order=3), TypeError, "no mixer of this model takes order"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        HyenaFormer(**{**SMALL, **kwargs})


def test_rates_reach_their_parts():
    model = small_model("hpx_former_s18", drop_path_rate=0.4, proj_drop_rate=0.2)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {(block.mlp.drop1.p, block.mlp.drop2.p, block.token_mixer.proj_drop.p) for block in blocks} == {(0.2,) * 3}


def test_mixer_options_reach_the_mixers():
    model = small_model("c_hpx_former_s18", gate_act="silu", short_kernel_size=3, proj_drop_rate=0.2)
    mixer = model.stages[2].blocks[0].token_mixer
    assert isinstance(mixer, Hyena2d) and isinstance(mixer.gate_act, nn.SiLU) and mixer.proj_drop.p == 0.2
    assert mixer.short_filter.kernel_size == (3, 3) and mixer.filter.filter_emb_dim == 8
    assert not [m for m in model.stages[:2].modules() if isinstance(m, (Hyena1d, Hyena2d))]


@pytest.mark.parametrize("training", [False, True])
def test_blocks_give_the_same_with_and_without_gradients(training, monkeypatch):
    monkeypatch.setattr(mlp, "PART_TOKENS", 32)
    block = small_model("hpx_former_s18").stages[2].blocks[0].train(training).double()
    with torch.no_grad():
        block.mlp.act.scale.fill_(0.7)
        block.mlp.act.bias.fill_(-0.3)
    x = torch.randn(2, 5, 7, 64, dtype=torch.float64)
    before = x.clone()
    expected = block(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)
