"""What a model looks at, in numbers; and pictures that open."""

import doctest
import sys

import pytest
import timm
import torch
from families import small
from PIL import Image
from torch import nn
from trainer import MODEL

from hyena_vision import pretrained, visualize
from hyena_vision.data import DataError
from hyena_vision.ops import long_conv1d, long_conv2d
from hyena_vision.training.errors import UserError
from hyena_vision.visualize import area_of, effective_receptive_field, filters, mixers


@pytest.mark.parametrize("family", ["hyena2d_vit", "hyena_vit"])
def test_filters_are_what_the_layer_convolves_with(family):
    model = small(family)
    name, mixer = list(mixers(model).items())[1]
    assert name == "blocks.1.mixer"
    taps = filters(model, 1, (64, 96))  # 4 x 6 tokens
    assert torch.equal(taps, filters(model, -1, (64, 96)))
    is_image, shape = mixer.rank == 2, (4, 6) if mixer.rank == 2 else (24,)
    assert taps.shape == (1, 24, *(2 * n - 1 for n in shape))
    impulse = torch.zeros(1, 24, *shape)
    where = (1, 2) if is_image else (8,)
    impulse[(0, slice(None), *where)] = 1
    with torch.no_grad():
        kernel, skip = mixer.filter(shape)[0], torch.zeros(24)
        response = (long_conv2d if is_image else long_conv1d)(impulse, kernel, skip)[0]
    # y[t] = h[t - where]: taps from u = -where on, and u = 0 is tap n - 1
    window = tuple(slice(n - 1 - at, 2 * n - 1 - at) for n, at in zip(shape, where, strict=True))
    torch.testing.assert_close(taps[(0, slice(None), *window)], response, rtol=1e-4, atol=1e-5)


def test_filters_of_a_pyramid_follow_each_stage():
    model = small("hpx_former")
    grids = [filters(model, layer, 64).shape[2:] for layer in range(len(mixers(model)))]
    assert grids == [(31, 31), (15, 15), (7, 7), (3, 3)]


def test_filters_that_depend_on_the_image_are_those_of_a_mean_one():
    model, seen = small("hyena2d_vit", film=True), []
    mixer = mixers(model)["blocks.0.mixer"]
    mixer.filter.register_forward_hook(lambda _, args, kernels: seen.append(kernels))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    torch.testing.assert_close(filters(model, 0, 64), seen[0][:, 0])


def test_the_field_of_a_depthwise_convolution_is_its_window():
    model = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    field = effective_receptive_field(model, torch.randn(2, 3, 9, 12))
    expected = torch.zeros(9, 12)
    expected[3:6, 5:8] = model.weight.detach().square().sum((0, 1)).div(3 * 3).sqrt()
    assert torch.equal(field > 0, expected > 0)
    torch.testing.assert_close(field, expected)


def test_the_field_is_the_root_mean_square_over_channels():
    model = nn.Conv2d(2, 5, 1)
    field = effective_receptive_field(model, torch.randn(1, 2, 3, 3), probes=1000)
    assert field[1, 1].item() == pytest.approx(model.weight.square().mean().sqrt().item(), rel=0.05)


def test_the_field_of_a_causal_model_ends_at_its_token():
    for backend, rounding in (("reference", 0), ("fft", 1e-6)):
        model = small("hyena_vit", causal=True, depth=1, backend=backend)
        field = effective_receptive_field(model, torch.randn(1, 3, 64, 80))
        tokens = field.unfold(0, 16, 16).unfold(1, 16, 16).amax((2, 3)).flatten()  # 4 x 5, the middle is number 12
        assert (tokens[:13] > 1e-3 * field.max()).all() and (tokens[13:] <= rounding * field.max()).all()


def test_the_field_is_the_same_where_weights_and_mode_are_left_alone():
    model = small("hb_former")
    images, before = torch.randn(2, 3, 96, 64), {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        field = effective_receptive_field(model, images, probes=2)
    assert field.shape == (96, 64) and (field > 0).all()
    assert torch.equal(field, effective_receptive_field(model, images, probes=2))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_area_of_a_field():
    field = torch.tensor([[6.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    assert [area_of(field, share) for share in (0.5, 0.6, 0.9, 1.0)] == [1 / 8, 1 / 8, 2 / 8, 3 / 8]


def test_what_cannot_be_shown_is_said():
    model = small("hyena2d_vit")
    with pytest.raises(UserError, match="layers 0 to 1, got layer 2"):
        filters(model, 2, 64)
    with pytest.raises(UserError, match="images of 64 x 65"):
        filters(model, 0, (64, 65))
    with pytest.raises(UserError, match="no Hyena layer"):
        filters(nn.Conv2d(3, 4, 3), 0, 64)
    with pytest.raises(UserError, match="no map of tokens"):
        effective_receptive_field(nn.Flatten(), torch.ones(1, 3, 4, 4))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a small model, as a run leaves it."""
    from hyena_vision.training.checkpoint_files import export_model

    folder = tmp_path_factory.mktemp("visualize")
    kwargs = {key: int(value) for key, value in (pair.split("=") for pair in MODEL[3:-1])}
    model = timm.create_model(MODEL[1], num_classes=3, **kwargs)
    export_model(model, model.state_dict(), str(folder), kwargs, input_size=(3, 16, 16))
    Image.new("RGB", (30, 20), "red").save(folder / "red.png")
    return folder


def test_pictures(exported, tmp_path, monkeypatch):
    titles, draw = [], visualize.draw_fields
    monkeypatch.setattr(visualize, "draw_fields", lambda fields, title: titles.extend(fields) or draw(fields, title))
    visualize.main(["filters", str(exported), "--output", str(tmp_path / "filters.png")])
    argv = ["receptive-field", str(exported), "--beside", "test_vit", "--untrained", "--img-size", "32"]
    visualize.main([*argv, "--images", str(exported), "--output", str(tmp_path / "field.png")])
    assert titles == [exported.name, "test_vit (initial weights)"]
    for name in ("filters.png", "field.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_images_that_cannot_be_read_are_left_out(exported, tmp_path, capsys):
    red, broken = str(exported / "red.png"), tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert visualize._choose_images([str(broken), red], 8) == [red]
    assert f"left out: cannot read image {broken}" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no image .*broken\.jpg"):
        visualize._choose_images([str(broken), red], 1)


@pytest.mark.parametrize("module", [visualize, pretrained])
def test_examples_are_true(module):
    result = doctest.testmod(module, extraglobs={"timm": timm, "torch": torch})
    assert result.attempted and not result.failed


def test_titles_scales_and_units():
    taps = torch.randn(1, 5, 7, 9)
    figure = visualize.draw_filters(taps, "title", channels=4)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title().split("\n")[0] for axis in shown] == [f"channel {index}" for index in (0, 1, 3, 4)]
    for axis, channel in zip(shown, (0, 1, 3, 4), strict=True):
        drawn = torch.tensor(axis.images[0].get_array().data)
        torch.testing.assert_close(drawn, taps[0, channel] / taps[0, channel].abs().max())
        assert axis.images[0].get_extent() == [-4.5, 4.5, 3.5, -3.5] and axis.images[0].get_clim() == (-1, 1)
    (curve,) = visualize.draw_filters(torch.randn(1, 1, 6), "title", causal=True).axes[0].lines[:1]
    assert list(curve.get_xdata()) == [0, 1, 2, 3, 4, 5]

    field = torch.tensor([[0.0, 1.0], [10.0, 100.0]])
    figure = visualize.draw_fields({"one": field, "other": field}, "title")
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.mask.tolist() == [[True, False], [False, False]]
    assert drawn.compressed().tolist() == pytest.approx([-2, -1, 0])
    assert "25.0% of the pixels have none" in figure.axes[1].get_title()
    assert "log10" in figure.axes[-1].get_ylabel()


def test_what_is_wrong_is_one_line(exported, tmp_path, capsys, monkeypatch):
    out, run = ["--output", str(tmp_path / "out.png")], str(exported)
    for argv, code, *fragments in [
        (["filters", run, "--layer", "7", *out], 1, "layers 0 to 0", "7"),
        (["filters", "test_vit", "--untrained", *out], 1, "no Hyena layer"),
        (["filters", run, "--output", "out.bmp"], 2, "--output", ".png", "out.bmp"),
        (["filters", run, "--output", f"{tmp_path}/none/out.png"], 1, "cannot write", "none/out.png"),
        (["filters", run, *out, "--device", "nonsense"], 2, "--device", "nonsense"),
        (["receptive-field", run, "--images", "nothing", *out], 1, "no such file or folder: nothing"),
        (["receptive-field", run, "--img-size", "15", *out], 1, "15"),
        (["receptive-field", run], 2, "--output"),
        (["nonsense", run, *out], 2, "nonsense"),
    ]:
        expect_error(capsys, argv, code, *fragments)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    expect_error(capsys, ["filters", run, *out], 1, "matplotlib", 'pip install "hyena-vision[train]"')
    assert not (tmp_path / "out.png").exists()


def expect_error(capsys, argv: list[str], code: int, *fragments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        visualize.main(argv)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == code and "error: " in line, line
    assert all(fragment in line for fragment in fragments), line
