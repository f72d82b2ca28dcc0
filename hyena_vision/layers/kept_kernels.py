"""Kernels of a mixer that are kept between calls, where no gradient is wanted and nobody could tell."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hyena_vision.ops import PreparedKernel

if TYPE_CHECKING:
    from hyena_vision.layers.hyena import _Hyena


@dataclass(frozen=True)
class _Entry:
    settings: tuple
    given: list[Tensor]  # the weights themselves
    weights: list[Tensor]  # copies, or views where they are not compared by value
    versions: list[int]
    kernels: list[PreparedKernel]

    def is_of(self, settings: tuple, weights: list[Tensor], by_value: bool) -> bool:
        """Whether the kernels are still those of the mixer."""
        if self.settings != settings or len(self.weights) != len(weights):
            return False
        if not by_value and self.versions != [_version(weight) for weight in weights]:
            return False
        # Views hold the memory, so that no other weight can be at its address
        return all(map(_is_equal if by_value else _is_at, self.weights, weights))


class KeptKernels:
    """Prepared kernels of one mixer, by size, dtype and device of the signals; empty in copies and pickles.

    Before each use the weights are compared with those that the kernels were made of: by value, so that a change is
    seen however it was made, also through `.data`; those of a reparameterized mixer by address and version. A mixer
    keeps kernels of one size, a reparameterized one of every size that it meets.

    Attributes:
        entries: By `key`. Never changed, only replaced, so that threads see one state or the other.
    """

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        # What CUDA graphs read: for the life of the mixer, whatever other sizes and weights come
        self._captured: list[_Entry] = []

    def __reduce__(self) -> tuple:
        return KeptKernels, ()

    def clear(self) -> None:
        """Drop all kernels but those that captured graphs read."""
        self.entries = {}

    def of(self, mixer: "_Hyena", value: Tensor) -> list[PreparedKernel] | None:
        """The kernels of all steps, kept from an earlier call or from now on; None where they cannot be.

        Args:
            mixer: In eval mode, without gradients.
            value: Signal that the first kernel is for.
        """
        by_value = not mixer.reparameterized
        if by_value and value.device.type != "cpu":
            return None
        weights = mixer.filter.fast_weights(value, mixer.skip)
        if weights is None:
            return None
        if by_value and is_large(mixer, value):
            self.clear()
            return None
        weights = [mixer.skip, *weights]
        settings, key = mixer.kernel_settings, key_of(value)
        entry = self.entries.get(key)
        if entry is not None and entry.is_of(settings, weights, by_value):
            if _is_capturing(value) and not any(entry is other for other in self._captured):
                self._captured.append(entry)
            return entry.kernels
        if _is_capturing(value):
            return None  # what is made now has no numbers before the graph runs
        with torch.inference_mode(False), torch.no_grad():
            # Copied first: what another thread changes meanwhile is seen by the next call
            copies = [weight.detach().clone() if by_value else weight.detach() for weight in weights]
            versions = [_version(weight) for weight in weights]
            entry = _Entry(settings, [] if by_value else weights, copies, versions, mixer.prepare_kernels(value))
        if value.is_cuda:
            torch.cuda.current_stream(value.device).synchronize()  # calls on other streams find them finished
        self.entries = {key: entry} if by_value else {**self.entries, key: entry}
        return entry.kernels


def is_large(mixer: "_Hyena", value: Tensor) -> bool:
    """Whether spectra would take more than the mixer's `cache_limit`: twice as many numbers per axis as tokens."""
    numbers = value.shape[1:].numel() * 2 ** (value.ndim - 2) * len(mixer.skip)
    return numbers * (8 if value.dtype == torch.float64 else 4) > mixer.cache_limit


def key_of(value: Tensor) -> str:
    """Size, dtype and device; as text, which binds a compiled graph to them."""
    size = "x".join([f"{n}" for n in value.shape[2:]])
    return f"{size} {value.dtype} {value.device}"


def _is_capturing(value: Tensor) -> bool:
    return value.is_cuda and torch.cuda.is_current_stream_capturing()


def _version(weight: Tensor) -> int:
    """Counts changes in place; not those through `.data`, by fused optimizers, or of tensors made in inference mode."""
    return 0 if weight.is_inference() else weight._version


def _is_at(kept: Tensor, weight: Tensor) -> bool:
    """Whether a view is still what the weight is."""
    if kept.data_ptr() != weight.data_ptr() or kept.dtype != weight.dtype or kept.device != weight.device:
        return False
    return kept.shape == weight.shape and kept.stride() == weight.stride()


def _is_equal(kept: Tensor, weight: Tensor) -> bool:
    return kept.dtype == weight.dtype and kept.device == weight.device and torch.equal(kept, weight)
