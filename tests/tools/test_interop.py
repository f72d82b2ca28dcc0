"""Real segmentation_models_pytorch, transformers and torchvision's detectors: docs/libraries.md, and steps of training.

They need `pip install ".[interop]"`.
"""

import pytest
import timm
import torch
import torch.nn.functional as F
from test_readme import run_blocks
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

smp = pytest.importorskip("segmentation_models_pytorch")
transformers = pytest.importorskip("transformers")

import hyena_vision  # noqa: E402, F401  registers the models

# No depth: smp has an argument of that name
VIT = dict(embed_dim=24, base_grid=4, filter_dim=8)
FPN = dict(**VIT, fpn_dim=16)
FORMER = dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), filter_emb_dims=(4, 4, 4, 4), base_img_size=64)
PYRAMIDS = {"hyena2d_vit_tiny_fpn": FPN, "hpx_former_s18": FORMER}
PLAIN = {"hyena_vit_tiny": VIT, "hyena2d_vit_tiny": VIT}


@pytest.fixture
def batch():
    """Two images, and where each is light."""
    images = torch.rand(2, 3, 64, 64)
    return images, (F.avg_pool2d(images.mean(1), 9, 1, 4) > 0.5).long()


def assert_learns(model, loss_of, to=0.8):
    """The loss of one batch falls to a fraction of the first one in 30 steps, and each mixer has a part in that."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < to * losses[0], losses
    mixers = [p.grad for name, p in model.named_parameters() if "mixer." in name]
    assert mixers and all(gradient is not None and gradient.any() for gradient in mixers)


def test_page(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("docs/libraries.md")
    assert names["masks"].shape == (2, 2, 64, 96) and names["image"].shape == (64, 96, 3)
    assert "took 330 of" in caplog.text and "Initialised afresh: fpn.*." in caplog.text
    for key, weight in names["trained"].blocks.state_dict().items():
        assert torch.equal(weight, names["segmenter"].encoder.model.model.blocks.state_dict()[key])
    again, classifier, images = names["again"], names["classifier"].eval(), torch.rand(1, 3, 64, 64)
    assert torch.equal(again(images).logits, classifier(images).logits)
    assert len(names["losses"]) == 6 and all(loss.isfinite() for loss in names["losses"].values())


@pytest.mark.parametrize("encoder", PYRAMIDS)
@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer"])
def test_segmentation_models_learn(decoder, encoder, batch):
    settings = dict(decoder_channels=16) if decoder == "UPerNet" else {}
    model = smp.create_model(decoder, f"tu-{encoder}", encoder_weights=None, classes=2, **settings, **PYRAMIDS[encoder])
    assert model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    assert_learns(model, lambda model: F.cross_entropy(model(batch[0]), batch[1]))


@pytest.mark.parametrize("encoder", PYRAMIDS)
def test_other_segmentation_models_run(encoder):
    for decoder in ("UnetPlusPlus", "Linknet", "MAnet"):
        model = smp.create_model(decoder, f"tu-{encoder}", encoder_weights=None, classes=2, **PYRAMIDS[encoder])
        masks = model(torch.rand(2, 3, 64, 96))
        assert masks.shape == (2, 2, 64, 96)
        masks.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("encoder", [*PLAIN, "hpx_former_s18"])
def test_dpt_learns(encoder, batch):
    channels = dict(decoder_intermediate_channels=(8, 8, 8, 8), decoder_fusion_channels=8, decoder_readout="ignore")
    settings = {**PLAIN, **PYRAMIDS}[encoder]
    model = smp.DPT(f"tu-{encoder}", encoder_weights=None, classes=2, **channels, **settings)
    assert model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    assert_learns(model, lambda model: F.cross_entropy(model(batch[0]), batch[1]))


@pytest.mark.parametrize("encoder", PYRAMIDS)
def test_dilated_encoders_are_refused_in_words(encoder):
    for decoder in ("DeepLabV3", "DeepLabV3Plus", "PAN"):
        with pytest.raises(ValueError, match=rf"^{encoder} has the strides .* got output_stride=\d+; take a decoder"):
            smp.create_model(decoder, f"tu-{encoder}", encoder_weights=None)
    model = smp.PAN(f"tu-{encoder}", encoder_weights=None, encoder_output_stride=32, **PYRAMIDS[encoder]).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 256, 256)).shape == (1, 1, 256, 256)


def test_preprocessing_of_every_name():
    """smp's own where weights are published; where none are it says so, and timm has the numbers."""
    published = smp.encoders.get_preprocessing_params("tu-hpx_former_s18")
    for name in timm.list_models(["hyena*vit*", "h*former*"]):
        config = timm.get_pretrained_cfg(name)
        assert [*config.mean] == published["mean"] and [*config.std] == published["std"]
        if name.startswith("hyena"):
            with pytest.raises(ValueError, match=f"^{name} does not have pretrained weights"):
                smp.encoders.get_preprocessing_params(f"tu-{name}")
        else:
            assert smp.encoders.get_preprocessing_params(f"tu-{name}") == published


@pytest.mark.parametrize("name", [*PLAIN, *PYRAMIDS])
def test_timm_backbone_learns(name, batch):
    indices, settings = (0, 1, 2, 3), {**PLAIN, **PYRAMIDS}[name]
    settings = dict(depth=4, **settings) if "vit" in name else settings
    backbone = transformers.TimmBackbone(
        transformers.TimmBackboneConfig(backbone=name, out_indices=indices), **settings
    )
    model = nn.ModuleList([backbone, *[nn.Conv2d(channels, 2, 1) for channels in backbone.channels]])

    def loss_of(model):
        maps = model[0](batch[0]).feature_maps
        return sum(
            F.cross_entropy(F.interpolate(c(y), (64, 64)), batch[1]) for y, c in zip(maps, model[1:], strict=True)
        )

    strides = [64 // y.shape[-1] for y in backbone(batch[0]).feature_maps]
    assert strides == ([4, 8, 16, 32] if name in PYRAMIDS else [16] * 4)
    assert_learns(model, loss_of, to=0.95)


@pytest.mark.parametrize("name", [*PLAIN, *PYRAMIDS])
def test_timm_wrapper_learns(name, batch):
    settings = {**PLAIN, **PYRAMIDS}[name]
    settings = dict(depth=2, **settings) if "vit" in name else settings
    config = transformers.TimmWrapperConfig(architecture=name, num_labels=2, model_args=settings)
    model = transformers.TimmWrapperForImageClassification(config)
    assert_learns(model, lambda model: model(batch[0], labels=torch.tensor([0, 1])).loss)
    features = transformers.TimmWrapperModel(transformers.TimmWrapperConfig(architecture=name, model_args=settings))
    assert features(batch[0]).pooler_output.shape == (2, features.timm_model.num_features)


class Backbone(nn.Module):
    """Four maps and torchvision's pyramid."""

    def __init__(self, name, **kwargs):
        super().__init__()
        self.body = timm.create_model(name, features_only=True, **kwargs)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16, extra_blocks=LastLevelMaxPool())
        self.out_channels = 16

    def forward(self, x):
        return self.fpn(dict(zip("0123", self.body(x), strict=True)))


@pytest.mark.parametrize("detector", [FasterRCNN, RetinaNet])
@pytest.mark.parametrize("name", PYRAMIDS)
def test_detectors_learn(name, detector):
    model = detector(Backbone(name, **PYRAMIDS[name]), num_classes=2, min_size=64, max_size=96)
    target = dict(boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]), labels=torch.tensor([1]))
    image = torch.rand(3, 64, 64)
    assert set(model.eval()([image])[0]) == {"boxes", "labels", "scores"}
    assert_learns(model, lambda model: sum(model([image], [target]).values()))
