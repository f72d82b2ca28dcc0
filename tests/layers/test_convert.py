"""Outputs of the papers' own operators, computed by their code in float64 with random weights, against ours."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyena_vision.layers import hyena1d_from_hyenapixel, hyena1d_from_safari, hyena2d_from_hyenapixel

DATA = Path(__file__).parent / "data"


def load(name):
    tensors = load_file(DATA / f"{name}.safetensors")
    state_dict = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return state_dict, tensors["x"].double(), tensors["y"].double()


def relative_error(given, expected):
    return ((given - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("name", "filter_layout"),
    [
        ("safari_standalone_order2", "order_channel"),
        ("safari_standalone_order3", "order_channel"),
        ("safari_package_order2", "channel_order"),
        ("safari_package_order3", "channel_order"),
        ("safari_package_short", "channel_order"),
    ],
)
def test_safari_weights_give_its_outputs(name, filter_layout):
    state_dict, x, expected = load(name)
    mixer = hyena1d_from_safari(state_dict, filter_layout=filter_layout).double()
    assert relative_error(mixer(x.unsqueeze(1)).squeeze(1), expected) < 1e-6


def test_safari_layouts_differ_for_order_3():
    state_dict, x, expected = load("safari_package_order3")
    mixer = hyena1d_from_safari(state_dict, filter_layout="order_channel").double()
    assert relative_error(mixer(x.unsqueeze(1)).squeeze(1), expected) > 1e-2


@pytest.mark.parametrize("name", ["hyenapixel_1d_norm0", "hyenapixel_1d_norm1", "hyenapixel_1d_order3"])
def test_hyenapixel_bidirectional_weights_give_its_outputs(name):
    state_dict, x, expected = load(name)
    assert relative_error(hyena1d_from_hyenapixel(state_dict).double()(x), expected) < 1e-6


@pytest.mark.parametrize("name", ["hyenapixel_2d_norm0", "hyenapixel_2d_norm1"])
def test_hyenapixel_2d_weights_give_its_outputs(name):
    state_dict, x, expected = load(name)
    assert relative_error(hyena2d_from_hyenapixel(state_dict).double()(x), expected) < 1e-6


def test_float32_stays_within_the_promised_error():
    state_dict, x, expected = load("hyenapixel_2d_norm1")
    assert relative_error(hyena2d_from_hyenapixel(state_dict)(x.float()).double(), expected) < 1e-5


def test_converted_filters_run_on_other_grids():
    state_dict, _, _ = load("hyenapixel_2d_norm1")
    mixer = hyena2d_from_hyenapixel(state_dict)
    assert mixer(torch.randn(1, 7, 5, 6)).shape == (1, 7, 5, 6)


def test_scaled_distances_are_folded_into_the_window():
    state_dict, x, _ = load("hyenapixel_2d_norm1")
    stretched = {**state_dict, "long_conv.distance_map": 1.16 * state_dict["long_conv.distance_map"]}
    faster = {**state_dict, "long_conv.deltas": 1.16 * state_dict["long_conv.deltas"]}
    first, second = (hyena2d_from_hyenapixel(weights).double()(x) for weights in (stretched, faster))
    assert relative_error(first, second) < 1e-6
    assert relative_error(first, hyena2d_from_hyenapixel(state_dict).double()(x)) > 1e-4
    with pytest.raises(ValueError, match="distance_map must be a multiple"):
        hyena2d_from_hyenapixel({**state_dict, "long_conv.distance_map": torch.rand(1, 1, 7, 7)})


def test_float64_weights_stay_exact():
    state_dict, _, _ = load("hyenapixel_2d_norm1")
    mixer = hyena2d_from_hyenapixel({key: value.double() + 1e-12 for key, value in state_dict.items()})
    assert mixer.proj.weight.dtype == torch.float64
    assert torch.equal(mixer.proj.bias, state_dict["out_proj.bias"].double() + 1e-12)


def test_foreign_weights_are_refused():
    converters = {"safari_package_order2": hyena1d_from_safari, "hyenapixel_2d_norm0": hyena2d_from_hyenapixel}
    for name, convert in converters.items():
        state_dict, _, _ = load(name)
        with pytest.raises(ValueError, match="does not have, such as 'ord_proj_w'"):
            convert({**state_dict, "ord_proj_w": torch.zeros(1)})


def test_unknown_layout_and_missing_weight_are_named():
    state_dict, _, _ = load("safari_package_order2")
    with pytest.raises(ValueError, match="filter_layout must be .* got 'rows'"):
        hyena1d_from_safari(state_dict, filter_layout="rows")
    del state_dict["in_proj.weight"]
    with pytest.raises(KeyError, match="in_proj.weight"):
        hyena1d_from_safari(state_dict)
