"""Comparison of a contender with the truth in float64, before anybody looks at its speed."""

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from hyena_vision.benchmark.contenders import Contender, Setting
from hyena_vision.benchmark.timing import OUT_OF_MEMORY, attempt
from hyena_vision.testing import TOLERANCES, relative_errors
from hyena_vision.training.errors import UserError


def check_ops(contenders: Mapping[str, Contender], settings: Sequence[Setting]) -> None:
    """Compare contenders with the truth; those that cannot run are left out.

    Raises:
        UserError: With the name and the figures of every wrong one, or why it failed.
    """
    wrong = []
    for setting, (name, contender) in product(settings, contenders.items()):
        if contender.reason(setting) is not None:
            continue
        errors, status = attempt(partial(find_errors, contender, setting))
        if status == OUT_OF_MEMORY:
            print(f"{name} at grid {setting.grid}: not checked, {status}", file=sys.stderr)
        else:
            wrong += [f"{name} at grid {setting.grid}: {error}" for error in ([status] if errors is None else errors)]
    if wrong:
        raise UserError("nothing was timed: " + "; ".join(wrong))


def find_errors(contender: Contender, setting: Setting) -> list[str]:
    """Compare a contender, with `backward` its gradients, too, by `hyena_vision.testing.TOLERANCES`.

    Returns:
        What is wrong, with figures: nothing if all is right, or if the contender has no truth.
    """
    if contender.truth is None:
        return []
    inputs = contender.inputs(setting)
    exact = [value.double() if isinstance(value, (Tensor, nn.Module)) else value for value in copy.deepcopy(inputs)]
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
    rms, worst = (growth * bound for bound in TOLERANCES[setting.dtype])
    # A gate multiplies the error of its element, and the largest of millions of them are 5 times their RMS
    worst *= 5.0 if contender.roundings > 1 else 1.0
    wrong = []
    for what, value, exact_value in compared:
        errors = relative_errors(value, exact_value)
        if not (errors[0] <= rms and errors[1] <= worst):  # which nan is not
            wrong.append(
                f"{what} in {setting.dtype}: relative RMS {errors[0]:.2e} (at most {rms:.1e}), "
                f"worst / RMS {errors[1]:.2e} (at most {worst:.1e})"
            )
    return wrong
