"""How far a mixer is from its C++: at most five frames of ours, kept kernels or gradients."""

import inspect

import pytest
import torch
from operators import needs_cpp

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops.cpp import long_conv

pytestmark = needs_cpp


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mixer", [Hyena1d, Hyena2d])
def test_five_frames_from_the_mixer_to_the_compiled_code(mixer, training, monkeypatch):
    mixer, x = mixer(16, backend="cpp").train(training), torch.randn(1, 6, 6, 16)
    with torch.set_grad_enabled(training):
        mixer(x)  # kernels are kept from here on
        stacks, address = [], long_conv.address

        def record(*args):
            names = [frame.function for frame in inspect.stack() if "hyena_vision" in frame.filename]
            stacks.append(names[: len(names) - names[::-1].index("forward")])  # up to the mixer's own
            return address(*args)

        monkeypatch.setattr(long_conv, "address", record)
        mixer(x)
    of_convolution = [names for names in stacks if names[0] == "convolve"]
    assert of_convolution and max(map(len, of_convolution)) <= 5, of_convolution
