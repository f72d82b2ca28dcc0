"""Long convolutions with implicit kernels where no gradient is wanted.

Kernels are prepared once and kept as long as nothing that they depend on changes; those too large to keep are made,
used and dropped in each call, a few channels at a time. The weights behind a kernel are compared by
value before each use, so that a change is seen however it was made (optimizer, loading, averaging, `.data`). They are
few: the comparison takes microseconds where the kernels take milliseconds. On other devices it would have to wait for
the device, so there kernels are kept for reparameterized mixers only, whose weights are not compared.

torch.compile sees one operator, `hyena_vision::kept_conv`, which has the weights among its arguments.
"""

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hyena_vision.layers.implicit_filter import ImplicitFilter
from hyena_vision.ops import (
    LazyKernel,
    PreparedKernel,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.ops.library import empty_result, is_plain


@dataclass(frozen=True)
class _Kept:
    settings: tuple
    weights: list[Tensor]  # copies, or views where they are not compared by value
    versions: list[int]
    kernels: list[PreparedKernel]


# By the skip of a mixer: an entry goes when its mixer does, and copies of a mixer have their own.
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# What CUDA graphs read: for the life of a mixer, whatever other sizes and weights come.
_captured: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def serves(mixer: nn.Module, value: Tensor) -> bool:
    """Whether this call needs no gradients and no kernels of its own, and may keep them, eagerly or compiled."""
    if mixer.training or torch.is_grad_enabled() or mixer.filter.film is not None:
        return False
    if value.device.type != "cpu" and not mixer.reparameterized:
        return False
    if torch.compiler.is_dynamo_compiling():
        return not torch.compiler.is_exporting()
    return is_plain(value, mixer.skip, *mixer.filter.parameters())


def convolve(mixer: nn.Module, step: int, value: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> Tensor:
    """The long convolution of one step of a mixer that `serves` says yes to.

    Args:
        mixer: Has `filter`, `skip` and `config`.
        step: Of the recurrence, 0 to order - 2.
        value: (B, C, *size).
        gate: As value, or None.
        out_gate: As value, or None.

    Returns:
        (B, C, *size).
    """
    if torch.compiler.is_dynamo_compiling():
        weights = [*mixer.filter.parameters(), *mixer.filter.buffers()]
        return _compiled(value, gate, out_gate, mixer.skip, weights, mixer.config, step)
    return _convolve(mixer.filter, mixer.skip, _config(mixer.config), step, value, gate, out_gate)


def forget(mixer: nn.Module) -> None:
    """Drop the kernels of a mixer."""
    _kept.pop(mixer.skip, None)


def _convolve(
    filter: ImplicitFilter,
    skip: Tensor,
    config: dict[str, Any],
    step: int,
    value: Tensor,
    gate: Tensor | None,
    out_gate: Tensor | None,
) -> Tensor:
    long_conv = long_conv1d if value.ndim == 3 else long_conv2d
    return long_conv(value, _kernel(filter, skip, config, step, value), gate=gate, out_gate=out_gate)


def _prepare(
    filter: ImplicitFilter, skip: Tensor, config: dict[str, Any], step: int, value: Tensor, keep: bool
) -> PreparedKernel:
    size = tuple(value.shape[2:])
    kernel = LazyKernel(
        (filter.dim, *filter.extents(size)),
        torch.promote_types(skip.dtype, torch.float32),
        skip.device,
        partial(filter.at, size, index=step),
    )
    prepare = prepare_kernel1d if value.ndim == 3 else prepare_kernel2d
    # No view of the skip, which would keep itself alive as the key of what is kept
    return prepare(value, kernel, skip[step].detach().clone(), **config["op"], keep=keep)


def _kernel(filter: ImplicitFilter, skip: Tensor, config: dict[str, Any], step: int, value: Tensor) -> PreparedKernel:
    """The kernel of a step: kept from an earlier call, or kept from now on, or only for this call if it is large."""
    rank, size = value.ndim - 2, tuple(value.shape[2:])
    by_value = config["limit"] is not None
    # Of a spectrum: at most twice as many numbers per axis as there are tokens
    numbers = value.shape[1:].numel() * 2**rank * len(skip)
    if by_value and numbers * (8 if value.dtype == torch.float64 else 4) > config["limit"]:
        _kept.pop(skip, None)
        return _prepare(filter, skip, config, step, value, keep=False)
    weights = [skip, *filter.parameters(), *filter.buffers()]
    settings = (size, value.dtype, value.device, filter.settings, config)
    kept, versions = _kept.get(skip), [_version(weight) for weight in weights]
    if kept is not None and kept.settings == settings:
        # Views hold the memory, so that no other weight can be at its address
        same = all(map(_equal if by_value else _is_at, kept.weights, weights))
        if same and (by_value or kept.versions == versions):
            if _is_capturing(value) and not any(kept is other for other in _captured.get(skip, [])):
                _captured[skip] = [*_captured.get(skip, []), kept]
            return kept.kernels[step]
    if _is_capturing(value):
        # What is made now has no numbers before the graph runs
        return _prepare(filter, skip, config, step, value, keep=False)
    _kept.pop(skip, None)
    # Copied first: what another thread changes meanwhile is seen by the next call
    weights = [weight.detach().clone() if by_value else weight.detach() for weight in weights]
    kernels = [_prepare(filter, skip, config, index, value, keep=True) for index in range(len(skip))]
    if value.is_cuda:
        torch.cuda.current_stream(value.device).synchronize()  # calls on other streams find them finished
    _kept[skip] = _Kept(settings, weights, versions, kernels)
    return kernels[step]


def _is_capturing(value: Tensor) -> bool:
    return value.is_cuda and torch.cuda.is_current_stream_capturing()


def _version(weight: Tensor) -> int:
    """Counts changes in place; not those through `.data`, by fused optimizers, or of tensors made in inference mode."""
    return 0 if weight.is_inference() else weight._version


def _is_at(kept: Tensor, weight: Tensor) -> bool:
    """Whether a view is still what the weight is."""
    if kept.data_ptr() != weight.data_ptr() or kept.dtype != weight.dtype:
        return False
    return kept.shape == weight.shape and kept.stride() == weight.stride()


# torch.equal takes several times as long for some 100,000 numbers
_memcmp = ctypes.CDLL("msvcrt" if os.name == "nt" else None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _equal(kept: Tensor, weight: Tensor) -> bool:
    if kept.shape != weight.shape or kept.dtype != weight.dtype or kept.device != weight.device:
        return False
    if kept.device.type != "cpu" or not all(t.is_contiguous() and not t.is_neg() for t in (kept, weight)):
        return torch.equal(kept, weight)
    return _memcmp(kept.data_ptr(), weight.data_ptr(), kept.nbytes) == 0


@lru_cache(maxsize=128)
def _config(text: str) -> dict[str, Any]:
    return json.loads(text)


class _Holder(nn.Module):
    """Gives a function a filter of the settings of another, with whatever weights it is called with."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.filter = ImplicitFilter(**settings, device="meta")

    def forward(self, function: Callable[[ImplicitFilter], Tensor]) -> Tensor:
        return function(self.filter)


@lru_cache(maxsize=128)
def _holder(text: str) -> tuple[_Holder, list[str]]:
    holder = _Holder(_config(text)["filter"])
    return holder, [name for name, _ in (*holder.named_parameters(), *holder.named_buffers())]


@torch.library.custom_op("hyena_vision::kept_conv", mutates_args=())
def _compiled(
    value: Tensor,
    gate: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
    out_gate: Optional[Tensor],  # noqa: UP045
    skip: Tensor,
    weights: list[Tensor],
    config: str,
    step: int,
) -> Tensor:
    holder, names = _holder(config)

    def function(filter: ImplicitFilter) -> Tensor:
        return _convolve(filter, skip, _config(config), step, value, gate, out_gate)

    y = torch.func.functional_call(holder, dict(zip(names, weights, strict=True)), (function,))
    # Some backends give other strides than those that the compiler was told
    out = empty_result(value, keep_layout=True, dtype=y.dtype)
    return y if y.stride() == out.stride() else out.copy_(y)


@_compiled.register_fake
def _(value, gate, out_gate, skip, weights, config, step):
    dtype = value.dtype
    for tensor in (gate, out_gate):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    return empty_result(value, keep_layout=True, dtype=dtype)
