"""Weights of HyenaPixel's authors in our models: their numbers, their files, their repositories."""

import pytest
import timm
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from hyenapixel import SMALL, images, randomise, relative_error, small_model, small_original
from hyenapixel_original import HyenaPixelFormer
from safetensors.torch import save_file
from torch import nn

from hyena_vision.models import hyena_former_weights

# Of the authors' code: trained parameters (their total counts frozen distances, too, which follow from the size), and
# the first logits of one image with the weights of `randomise`.
ORIGINALS = {
    "hpx_former_s18": (29291580, [-1.37714, 0.20442, 0.87639, -1.23908, 0.02823, 0.72331]),
    "hpx_former_s18_384": (29291580, [-1.3289, 1.03713, 0.21558, -1.49279, 0.09721, 0.2578]),
    "hb_former_s18": (28250424, [-0.91835, -1.3955, 0.12444, 2.34943, -0.57264, 0.91988]),
    "c_hpx_former_s18": (27740616, [-2.2377, -1.20027, 1.03643, -0.74154, 0.42405, -0.54003]),
    "hpx_a_former_s18": (27882636, [-0.26952, 0.47361, -0.5486, 0.50645, 0.45976, -0.43008]),
    "hb_a_former_s18": (27171942, [0.3251, 1.50708, 0.2582, -0.60388, 0.75568, -0.84757]),
    "hpx_former_b36": (104552368, [-0.52183, -0.63948, -0.73888, 0.86852, 0.72735, 0.55168]),
    "hb_former_b36": (102418114, [-1.3031, -0.6745, 0.23721, 0.29179, -1.76329, 1.14931]),
}
# Their `hpx_former_s18_384_interpolate` with the weights of the first above
INTERPOLATED = [-0.83424, 0.63915, 0.15701, -1.91678, -0.16906, 0.24108]


SMALL_MODELS = ["hpx_former_s18", "hb_former_s18", "c_hpx_former_s18", "hb_a_former_s18"]


@pytest.fixture(params=SMALL_MODELS)
def name(request):
    return request.param


@pytest.mark.usefixtures("no_numbers")  # those of `randomise` come in their place
@pytest.mark.parametrize("name", list(ORIGINALS))
@torch.no_grad()
def test_parameters_and_logits_are_those_of_the_original(name):
    parameters, expected = ORIGINALS[name]
    model = timm.create_model(name, device="meta").to_empty(device="cpu").eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    original = randomise(HyenaPixelFormer(model))
    model.load_state_dict(original.state_dict())
    x = images(1, *model.default_cfg["input_size"])
    logits = model(x)[0, :6]
    assert relative_error(logits, torch.tensor(expected)) < 1e-4
    if name in SMALL_MODELS:  # their code is the same for large ones and in all mixtures
        assert relative_error(original(x)[0, :6], torch.tensor(expected)) < 1e-4


@pytest.mark.usefixtures("no_numbers")
@torch.no_grad()
def test_moving_weights_to_384_pixels_gives_what_the_authors_moved():
    model = timm.create_model("hpx_former_s18", base_img_size=384, device="meta").to_empty(device="cpu").eval()
    weights = randomise(HyenaPixelFormer(timm.create_model("hpx_former_s18", device="meta"))).state_dict()
    model.load_state_dict(weights)
    assert relative_error(model(images(1, 3, 384, 384))[0, :6], torch.tensor(INTERPOLATED)) < 1e-4


@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
@torch.no_grad()
def test_absolute_coordinates_give_the_logits_of_the_original_at_any_size(name, size):
    """Relative ones, which stretch kernels with the image, do not."""
    original, x = small_original(name), images(2, 3, *size)
    for coords, same in ("absolute", True), ("relative", False):
        model = small_model(name, coords=coords)
        model.load_state_dict(original.state_dict())
        assert (relative_error(model(x), original(x)) < 1e-5) == same


@torch.no_grad()
def test_files_of_the_original_load_in_every_way(name, tmp_path):
    original = small_original(name)
    state = original.state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.bin")
    torch.save({"state_dict": {}, "state_dict_ema": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "ema.tar")
    expected = original(images())
    for file in ("model.safetensors", "model.bin", "ema.tar"):
        for how in (
            dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / file), num_classes=7)),
            dict(checkpoint_path=str(tmp_path / file)),
        ):
            torch.testing.assert_close(small_model(name, **how)(images()), expected, rtol=1e-4, atol=1e-5)


def test_original_weights_fit_other_channels_and_classes(name):
    state = small_original(name).state_dict()
    nested = {"state_dict": state, "state_dict_ema": {}}
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=nested))
    model = small_model(name, in_chans=1, num_classes=5, **overlay)
    torch.testing.assert_close(model.stem.conv.weight, state["downsample_layers.0.conv.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(model.head.fc.fc1.weight, state["head.fc1.weight"])
    assert model(images(1, 1, 64, 64)).shape == (1, 5)


@torch.no_grad()
def test_nested_in_another_module(name):
    original = small_original(name)
    parent = nn.ModuleDict({"backbone": small_model(name)}).eval()
    parent.load_state_dict({f"backbone.{key}": value for key, value in original.state_dict().items()})
    torch.testing.assert_close(parent["backbone"](images()), original(images()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tables_grow_to_those_of_the_file():
    """The kernels of a file may reach beyond the image; what the model writes then loads in its turn."""
    # Both kinds of mixers
    mixers = dict(token_mixers=("hyena2d", "hyena1d"), depths=(1, 1), dims=(32, 32), filter_emb_dims=(4, 4))
    name, mixers = "hpx_former_s18", mixers | dict(res_scale_init_values=(None, 1.0))
    original = small_original(name, base_img_size=96, **mixers)
    x = images()
    model = small_model(name, **mixers)
    before = model(x)  # kernels are kept
    model.load_state_dict(original.state_dict())
    expected = original(x)
    assert relative_error(before, expected) > 0.1
    assert relative_error(model(x), expected) < 1e-4
    again = small_model(name, **mixers)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    torch._dynamo.reset()
    assert relative_error(torch.compile(model, backend="eager")(x), expected) < 1e-4
    small = small_original(name, **mixers)
    model.load_state_dict(small.state_dict())
    assert relative_error(model(x), small(x)) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in small_model(name, **mixers).parameters()
    )


def test_tables_that_grow_are_still_trained():
    model = small_model("hpx_former_s18")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.load_state_dict(small_original("hpx_former_s18", base_img_size=96).state_dict())
    table = model.stages[0].blocks[0].token_mixer.filter.z
    before = table.detach().clone()
    model(images()).square().sum().backward()
    optimizer.step()
    assert before.shape == (4, 47, 47) and not torch.equal(table, before)


@pytest.mark.parametrize("name", ["hpx_former_s18", "hb_former_s18"])
@torch.no_grad()
def test_weights_move_between_base_sizes_in_either_layout(name):
    original, x = small_original(name), images(1, 3, 96, 96)
    trained = small_model(name)
    trained.load_state_dict(original.state_dict())
    for state in (original.state_dict(), trained.state_dict()):
        model = small_model(name, base_img_size=96, table_img_size=64)
        model.load_state_dict(state)
        assert relative_error(model(x), original(x)) < 1e-4
        # And back: what was moved is written with its new base
        again = small_model(name)
        again.load_state_dict(model.state_dict())
        assert relative_error(again(images()), original(images())) < 1e-4
    resampled = []
    for state in (original.state_dict(), trained.state_dict()):
        model = small_model(name, base_img_size=96)
        if name == "hb_former_s18":
            with pytest.raises(ValueError, match=r"is for 576 tokens, the checkpoint's for 256; leave base_img_size"):
                model.load_state_dict(state)
        else:
            model.load_state_dict(state)
            resampled.append(model(x))
    if resampled:
        assert relative_error(resampled[1], resampled[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_files_in_half_precision_load(dtype):
    model = timm.create_model("hpx_former_s18", depths=(1, 1, 1, 1), num_classes=7).eval()
    state = {key: value.to(dtype) for key, value in randomise(HyenaPixelFormer(model)).state_dict().items()}
    exact = {key: value.float() for key, value in state.items()}
    exact["stages.0.0.token_mixer.long_conv.distance_map"] = None
    for key, value in HyenaPixelFormer(model).state_dict().items():
        if key.endswith("distance_map"):
            exact[key] = value
    logits = []
    for weights in (state, exact):
        model.load_state_dict(weights)
        logits.append(model(images(1, 3, 224, 224)))
    assert relative_error(logits[0], logits[1]) < 5e-3


@pytest.mark.parametrize("name", ["hpx_former_s18", "hb_former_s18"])
@torch.no_grad()
def test_kernels_may_end_before_the_image_does(name):
    original = small_original(name)
    model = small_model(name, base_img_size=96, table_img_size=64)
    model.load_state_dict(original.state_dict())
    x = images(1, 3, 96, 96)
    assert relative_error(model(x), original(x)) < 1e-4
    assert model(images(1, 3, 128, 64)).isfinite().all()


class FakeHub:
    """A hub with some repositories, or one that nobody reaches."""

    def __init__(self, *repositories, reachable=True):
        self.repositories, self.reachable = repositories, reachable

    def model_info(self, repository, **kwargs):
        if not self.reachable:
            raise OSError("no route\nto host")
        if repository not in self.repositories:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)


def test_weights_come_from_the_repository_that_exists(monkeypatch):
    monkeypatch.setattr(hyena_former_weights, "try_to_load_from_cache", lambda *args, **kwargs: None)
    state = small_original("hpx_former_s18").state_dict()
    fetched = []

    def fetch(hub_id, **kwargs):
        fetched.append(hub_id)
        return state

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    other = "Spravil/hpx_former_s18.westai_in1k_ema_384"
    sizes = dict(base_img_size=64, table_img_size=64)
    for repository in (other, "Spravil/hpx_former_s18.westai_in1k_384"):
        monkeypatch.setattr(hyena_former_weights, "HfApi", lambda repository=repository: FakeHub(repository))
        model = timm.create_model("hpx_former_s18_384", pretrained=True, **{**SMALL, **sizes}, num_classes=7)
        assert fetched[-1] == repository and model.pretrained_cfg["hf_hub_id"] == repository
    monkeypatch.setattr(hyena_former_weights, "HfApi", lambda: FakeHub(reachable=False))

    def cached(repository, file, **kwargs):
        return "PATH" if (repository, file) == (other, "pytorch_model.bin") else None

    monkeypatch.setattr(hyena_former_weights, "try_to_load_from_cache", cached)
    timm.create_model("hpx_former_s18_384", pretrained=True, **{**SMALL, **sizes}, num_classes=7)
    assert fetched[-1] == other
    monkeypatch.setattr(hyena_former_weights, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(hyena_former_weights, "HfApi", FakeHub)
    with pytest.raises(RuntimeError, match=f"westai_in1k_384 does not exist; {other} does not exist"):
        timm.create_model("hpx_former_s18_384", pretrained=True)


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr(hyena_former_weights, "HfApi", lambda: FakeHub(reachable=False))
    with pytest.raises(RuntimeError, match="weights of hb_former_b36 cannot be fetched") as error:
        timm.create_model("hb_former_b36", pretrained=True, depths=(1, 1, 1, 1))
    assert "\n" not in str(error.value) and "no route" in str(error.value) and error.value.__cause__ is None


def test_another_variant_is_refused():
    state = small_original("hb_former_s18").state_dict()
    message = r"stages\.0\.blocks\.0\.token_mixer is Hyena2d in the model, Hyena1d in the checkpoint"
    with pytest.raises(ValueError, match=message):
        small_model("hpx_former_s18").load_state_dict(state)
    del state["stages.1.0.token_mixer.filter_fn.bias"]
    with pytest.raises(ValueError, match=r"lacks 'filter_fn.bias' of stages\.1\.blocks\.0\.token_mixer"):
        small_model("hb_former_s18").load_state_dict(state)


def test_a_file_that_fits_in_part_is_refused():
    """timm is not strict where the classes differ, so that this is all that stands between it and random weights."""
    state = small_original("hb_former_s18", num_classes=3).state_dict()

    def load(state, **kwargs):
        overlay = dict(state_dict=state, num_classes=3)
        return small_model("hb_former_s18", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)

    load(state)
    with pytest.raises(ValueError, match=r"it has 'stages\.0\.blocks\.1\.\S+', the model has no such weight"):
        load(small_original("hb_former_s18", depths=(2, 1, 2, 1), num_classes=3).state_dict())
    with pytest.raises(ValueError, match=r"it lacks 'stages\.2\.blocks\.2\.\S+'"):
        load(state, depths=(1, 1, 3, 1))
    with pytest.raises(ValueError, match=r"it lacks 'stages\.0\.blocks\.0\.token_mixer\.gate_norms\.0\.weight'"):
        load(state, mixer_norm=True)
    with pytest.raises(ValueError, match="it lacks 'stem.norm.weight'"):
        load({key: value for key, value in state.items() if "post_norm" not in key})
    # Pruned models take what they have a place for, if they are asked to
    pruned = small_model("hb_former_s18")
    pruned.prune_intermediate_layers([0, 1])
    assert pruned.load_state_dict(state, strict=False).missing_keys == []
