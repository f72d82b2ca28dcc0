"""A ViT's checkpoint into a Hyena model: what has the same part is taken, the rest is reported, nonsense is refused."""

import logging
import pickle

import pytest
import timm
import torch

import hyena_vision  # noqa: F401  registers the models

SMALL = dict(embed_dim=32, depth=3, img_size=64, num_classes=7)
VIT = dict(**SMALL, num_heads=2)
HYENA = dict(**SMALL, filter_dim=8)


def vit(**kwargs):
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", **{**VIT, **kwargs})


def save(tmp_path, model, wrap=None):
    path = tmp_path / "checkpoint.pth"
    torch.save({wrap: model.state_dict()} if wrap else model.state_dict(), path)
    return path


def load(path, name="hyena2d_vit_tiny", num_classes=7, **kwargs):
    overlay = dict(file=str(path), num_classes=num_classes)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**HYENA, **kwargs})


@pytest.mark.parametrize("name", ["hyena_vit_tiny", "hyena2d_vit_tiny"])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_takes_everything_with_the_same_part(name, wrap, tmp_path):
    source = vit()
    model = load(save(tmp_path, source, wrap), name)
    theirs, ours = source.state_dict(), model.state_dict()
    taken = 0
    for key, value in theirs.items():
        key = key.replace(".attn.", ".mixer.")
        if key in ours:
            assert torch.equal(ours[key], value), key
            taken += 1
    # Patch embedding, norm and head in pairs; two norms, two projections and two layers of the MLP in each block.
    assert taken == 3 * 2 + 3 * 6 * 2


def test_reports_what_is_fresh_and_what_is_unused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(save(tmp_path, vit()))
    (message,) = [record.message for record in caplog.records if "Warm start" in record.message]
    assert "took 42 of" in message
    fresh, unused = message.split("Initialised afresh: ")[1].split("Not used: ")
    assert "blocks.*.mixer.filter.out.weight" in fresh and "blocks.*.mixer.short_filter.weight" in fresh
    assert "mixer.qkv" not in fresh and "mlp" not in fresh
    assert "cls_token" in unused and "pos_embed" in unused


@pytest.mark.parametrize("pooled", [dict(class_token=False, global_pool="avg"), dict()])
def test_last_norm_of_a_vit_goes_where_ours_is(pooled, tmp_path):
    source = vit(**pooled)
    norm = source.fc_norm if pooled else source.norm
    torch.nn.init.normal_(norm.weight)
    path = save(tmp_path, source)
    assert torch.equal(load(path).norm.weight, norm.weight)
    assert torch.equal(load(path, fc_norm=True).fc_norm.weight, norm.weight)


def test_other_head_patch_size_and_channels_are_adapted(tmp_path):
    source = vit(num_classes=11)
    model = load(save(tmp_path, source), num_classes=-1, patch_size=8, in_chans=1)
    assert model.head.weight.shape == (7, 32)
    assert model.patch_embed.proj.weight.shape == (32, 1, 8, 8)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    features = timm.create_model(
        "hyena2d_vit_tiny",
        pretrained=True,
        features_only=True,
        out_indices=(0, 1, 2),
        pretrained_cfg_overlay=dict(file=str(tmp_path / "checkpoint.pth"), num_classes=-1),
        **{k: v for k, v in HYENA.items() if k != "num_classes"},
    )
    assert len(features(torch.randn(1, 3, 64, 64))) == 3


def test_order_that_attention_lacks_keeps_its_own_input_projection(tmp_path, caplog):
    model = load(save(tmp_path, vit()), order=3)
    assert model.blocks[0].mixer.qkv.weight.shape == (4 * 32, 32)
    assert "blocks.*.mixer.qkv.weight" in caplog.text


def test_own_checkpoint_loads_whole_and_silently(tmp_path, caplog):
    torch.manual_seed(2)
    source = timm.create_model("hyena2d_vit_tiny", **HYENA)
    model = load(save(tmp_path, source))
    assert "Warm start" not in caplog.text
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_checkpoint_without_a_head_says_that_the_head_is_fresh(tmp_path, caplog):
    load(save(tmp_path, timm.create_model("hyena2d_vit_tiny", **{**HYENA, "num_classes": 0})))
    assert "Initialised afresh: head.weight, head.bias" in caplog.text


def test_head_of_other_classes_is_fresh_even_if_unannounced(tmp_path, caplog):
    assert load(save(tmp_path, vit(num_classes=9)), num_classes=7).head.weight.shape == (7, 32)
    assert "head.weight" in caplog.text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            lambda: vit(pre_norm=True),
            r"patch_embed.proj.bias has shape \(32,\), the checkpoint has nothing of that name",
        ),
        (lambda: vit(embed_dim=48), r"patch_embed.proj.weight has shape \(32, 3, 16, 16\), the checkpoint .*\(48, 3"),
        (lambda: vit(mlp_ratio=2), r"mlp.fc1.weight has shape \(128, 32\), the checkpoint has shape \(64, 32\)"),
        (lambda: vit(depth=2), r"blocks.2.norm1.weight has shape \(32,\), the checkpoint has nothing of that name"),
        (lambda: vit(depth=5), "HyenaViT with 3 blocks has no place for, such as 'blocks.3.norm1.weight'"),
        (lambda: vit(init_values=0.1), "no place for, such as 'blocks.0.ls1.gamma'"),
        (lambda: timm.create_model("resnet18"), "patch_embed.proj.weight .* the checkpoint has nothing of that name"),
        (lambda: timm.create_model("hyena2d_vit_tiny", **HYENA, order=3), r"skip has shape \(1, 32\), .* \(2, 32\)"),
        (lambda: timm.create_model("hyena_vit_tiny", **HYENA), r"short_filter.weight has shape \(96, 1, 3, 3\)"),
    ],
)
def test_wrong_architecture_is_one_clear_error(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path, source()))


def test_layer_scale_is_taken_where_the_model_has_it(tmp_path):
    source = vit(init_values=0.1)
    assert torch.equal(load(save(tmp_path, source), init_values=0.5).blocks[0].ls1.gamma, source.blocks[0].ls1.gamma)


def test_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"patch_embed.proj.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises((RuntimeError, pickle.UnpicklingError)):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()
