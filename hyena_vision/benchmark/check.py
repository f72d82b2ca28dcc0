"""Comparison of a contender with the truth in float64, before anybody looks at its speed."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from hyena_vision.benchmark.contenders import Contender, Setting
from hyena_vision.testing import TOLERANCES, relative_errors


def find_errors(contender: Contender, setting: Setting) -> list[str]:
    """Compare a contender with its truth, by the tolerances of `hyena_vision.testing` for the setting's dtype.

    Args:
        contender: An entry of `CONTENDERS`.
        setting: The problem; with `backward` the gradients of a convolution's inputs are compared too.

    Returns:
        What is wrong, with figures: nothing if all is right, or if the contender has no truth.
    """
    if contender.truth is None:
        return []
    inputs = contender.inputs(setting)
    exact = tuple(_to_double(value) for value in inputs)
    for value in (*inputs, *exact):
        if isinstance(value, Tensor):
            value.requires_grad_(setting.backward)
    with torch.enable_grad() if setting.backward else torch.inference_mode():
        contender.function(*inputs)
        # The second call is like those that are timed: the first may have kept something for it
        y, truth = contender.function(*inputs), contender.truth(*exact)
    if y.shape != truth.shape:
        return [f"result has shape {tuple(y.shape)} instead of {tuple(truth.shape)}"]
    compared = [("result", y, truth)]
    # Gradients of a mixer's many parameters are sums in its dtype, for which there is no bound to hold
    if setting.backward and contender.roundings == 1:
        weights = torch.randn_like(truth).to(y.dtype)
        given = torch.autograd.grad(y, inputs, weights)
        expected = torch.autograd.grad(truth, exact, weights.double())
        compared += zip(("gradient of x", "gradient of kernel"), given, expected, strict=True)
    # Independent roundings add up as the root of their number. In float32 the sums err more than they do
    growth = math.sqrt(contender.roundings) if setting.dtype in (torch.float16, torch.bfloat16) else 1.0
    wrong = []
    for what, value, exact_value in compared:
        errors = relative_errors(value, exact_value)
        rms, worst = TOLERANCES[setting.dtype]
        # A gate multiplies the error of its element, and the largest of millions of them are 5 times their RMS
        bounds = growth * rms, growth * worst * (5.0 if contender.roundings > 1 else 1.0)
        if not all(error <= bound for error, bound in zip(errors, bounds, strict=True)):
            wrong.append(
                f"{what} in {setting.dtype}: relative RMS {errors[0]:.2e} (at most {bounds[0]:.1e}), "
                f"worst / RMS {errors[1]:.2e} (at most {bounds[1]:.1e})"
            )
    return wrong


def _to_double(value: Any) -> Any:
    """The same argument in float64, as a new leaf."""
    if isinstance(value, Tensor):
        return value.detach().double()
    return copy.deepcopy(value).double() if isinstance(value, nn.Module) else value
