r"""Kernels of implicit filters: a small network of the position of each tap, times a window of its distance.

$$k_{p,c} = g \sum_f W_{c,f}\, h_{p,f} \cdot w_{p,c}, \quad
h = \sin(\omega_n \odot (W_n \sin(\cdots \sin(\omega_1 \odot (W_1 \phi_p + b_1)) \cdots) + b_n))$$
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.tensors import without_autocast
from hyena_vision.ops.watchers import is_batched

# Numbers of a kernel that are computed at a time: what one step writes, the next finds in the cache.
_BLOCK = 2**19


def implicit_kernel(
    features: Tensor,
    distances: Tensor,
    layers: Sequence[tuple[Tensor, Tensor | None, Tensor]],
    out: Tensor,
    *,
    decay: Tensor | None = None,
    log_sigma: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    r"""Evaluate the kernels of N channels at P taps, in blocks of taps.

    It keeps its arguments for the backward pass and nothing else: all that lies between is computed again there, block
    by block. Second derivatives go through the plain form.

    Args:
        features: (P, E), position features, float32 or float64 like all that follows.
        distances: (P, D), what the window falls off with: D = 1 for `decay`, one per axis for `log_sigma`, squared.
            Constants: they get no gradient.
        layers: Of the network: weight (F, E) or (F, F), bias (F,) or None, frequency of the sine (F,).
        out: (N, F), the last weight, with a gain in it where there is one.
        decay: (N,) for the window $\exp(-|\delta_c| d_p) + s_c$.
        log_sigma: (D, N) for the window $\exp(-\sum_a d_{p,a} / 2 \sigma_{c,a}^2)$. Without both there is none.
        shift: (N,) or (1,), $s_c$; None is 0.

    Returns:
        (P, N).

    Cost:
        O(P N F) time; O(P (N + E)) memory.

    Source:
        Hyena (arXiv:2302.10866), section 3.3; the radial window with a shift is HyenaPixel's (arXiv:2402.19305).
    """
    rest = (decay, log_sigma, shift, *(tensor for layer in layers for tensor in layer))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (features, out, *rest)):
        return _ImplicitKernel.apply(distances, features, out, *rest)
    return _in_blocks(distances, features, out, *rest)


def hidden_layers(features: Tensor, layers: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> Tensor:
    """The network but for its last weight, (P, F)."""
    for weight, bias, omega in layers:
        features = torch.sin(omega * F.linear(features, weight, bias))
    return features


def window(distances: Tensor, decay: Tensor | None, log_sigma: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """The window of N channels, (P, N), None for none; arguments as for `implicit_kernel`."""
    if log_sigma is not None:
        return torch.exp(-0.5 * distances @ torch.exp(-2 * log_sigma))
    if decay is None:
        return None
    values = torch.exp(-distances * decay.abs())
    return values if shift is None else values + shift


def _values(distances, features, out, decay, log_sigma, shift, *of_layers) -> Tensor:
    """The plain form."""
    layers = [of_layers[i : i + 3] for i in range(0, len(of_layers), 3)]
    kernel, factor = F.linear(hidden_layers(features, layers), out), window(distances, decay, log_sigma, shift)
    return kernel if factor is None else kernel * factor


def _blocks(taps: int, channels: int) -> Iterator[slice]:
    step = max(16, _BLOCK // channels)
    return (slice(start, start + step) for start in range(0, taps, step))


@torch.no_grad()
def _in_blocks(distances: Tensor, features: Tensor, out: Tensor, *rest: Tensor | None) -> Tensor:
    kernel = features.new_empty(len(features), len(out))
    for block in _blocks(*kernel.shape):
        kernel[block] = _values(distances[block], features[block], out, *rest)
    return kernel


class _ImplicitKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distances: Tensor, features: Tensor, out: Tensor, *rest: Tensor | None) -> Tensor:
        ctx.save_for_backward(distances, features, out, *rest)
        return _in_blocks(distances, features, out, *rest)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad.device.type):
            return _ImplicitKernel._backward(ctx, grad)

    @staticmethod
    def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        distances, *tensors = ctx.saved_tensors
        needed, again = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        if again or is_batched(grad):
            # Aliases: where one argument follows from another, autograd goes that way itself
            leaves = [None if t is None else t.view_as(t) if again else t.detach() for t in tensors]
            with torch.enable_grad():
                if not again:
                    leaves = [t if t is None else t.requires_grad_(n) for t, n in zip(leaves, needed, strict=True)]
                values = _values(distances, *leaves)
            wanted = [t for t, need in zip(leaves, needed, strict=True) if t is not None and need]
            found = iter(torch.autograd.grad(values, wanted, grad, create_graph=again))
            return None, *(next(found) if need else None for need in needed)
        sums = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)]
        for block in _blocks(*grad.shape):
            _add_gradients(sums, block, grad[block], distances[block], tensors[0][block], *tensors[1:])
        return None, *sums


def _add_gradients(sums, block, grad, distances, features, out, decay, log_sigma, shift, *of_layers) -> None:
    """The chain rule for `_values` of a block of taps; adds to the gradients of its arguments where there is a sum.

    That of the features is set in the rows of the block. It is what autograd would do, with fewer passes over memory.
    """
    dfeatures, dout, ddecay, dlog_sigma, dshift, *dlayers = sums
    inputs, products = [features], []
    for i in range(0, len(of_layers), 3):
        weight, bias, omega = of_layers[i : i + 3]
        products.append(F.linear(inputs[-1], weight, bias))
        inputs.append(torch.sin(omega * products[-1]))
    dvalues = grad
    factor = window(distances, decay, log_sigma, None)
    if factor is not None:
        dvalues = grad * (factor if shift is None else factor + shift)
    if factor is not None and any(t is not None for t in (ddecay, dlog_sigma, dshift)):
        dfactor = F.linear(inputs[-1], out).mul_(grad)
        if dshift is not None:
            dshift += dfactor.sum(0).sum_to_size(dshift.shape)
        dexponent = dfactor.mul_(factor)
        if ddecay is not None:
            ddecay -= (distances.T @ dexponent).squeeze(0) * decay.sign()
        if dlog_sigma is not None:
            dlog_sigma += (distances.T @ dexponent) * torch.exp(-2 * log_sigma)
    if dout is not None:
        dout.addmm_(dvalues.T, inputs[-1])
    dinput = dvalues @ out
    for i, product, given in zip(range(len(of_layers) - 3, -1, -3), products[::-1], inputs[-2::-1], strict=True):
        (weight, _, omega), (dweight, dbias, domega) = of_layers[i : i + 3], dlayers[i : i + 3]
        dproduct = dinput.mul_(torch.cos(omega * product))
        if domega is not None:
            domega += product.mul_(dproduct).sum(0)
        dproduct = dproduct.mul_(omega)
        if dbias is not None:
            dbias += dproduct.sum(0)
        if dweight is not None:
            dweight.addmm_(dproduct.T, given)
        if i > 0 or dfeatures is not None:
            dinput = dproduct @ weight
    if dfeatures is not None:
        dfeatures[block] = dinput
