"""Kernels of a mixer that are kept between calls, where no gradient is wanted and nobody could tell."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyena_vision.ops import PreparedKernel


@dataclass(frozen=True)
class _Entry:
    settings: tuple
    originals: list[Tensor]  # the weights themselves, where they are compared by address
    copies: list[Tensor]  # views, where they are not compared by value
    versions: list[int]
    kernels: list[PreparedKernel]

    def is_of(self, settings: tuple, weights: list[Tensor], by_value: bool) -> bool:
        """Whether the kernels are still those of the mixer."""
        if self.settings != settings or len(self.copies) != len(weights):
            return False
        for kept, weight, version in zip(self.copies, weights, self.versions, strict=True):
            if kept.dtype != weight.dtype or kept.device != weight.device:
                return False
            if by_value and not torch.equal(kept, weight):
                return False
            # A view holds the memory, so that no other weight can be at its address
            if not by_value and (version != _version(weight) or not _is_same_memory(kept, weight)):
                return False
        return True


class KeptKernels:
    """Prepared kernels of one mixer, by size, dtype and device of the signals; empty in copies and pickles.

    Before each use the weights are compared with those that the kernels were made of: by value, so that a change is
    seen however it was made, also through `.data`; those of a reparameterized mixer by address and version. A mixer
    keeps kernels of one size, a reparameterized one of every size that it meets.

    Attributes:
        entries: By `key_of`. Never changed, only replaced, so that threads see one state or the other.
        captured: What CUDA graphs read: for the life of the mixer, whatever other sizes and weights come.
    """

    def __init__(self) -> None:
        self.entries: dict[str, _Entry] = {}
        self.captured: list[_Entry] = []

    def __reduce__(self) -> tuple:
        return KeptKernels, ()

    def clear(self) -> None:
        """Drop all kernels but those that captured graphs read."""
        self.entries = {}

    def of(
        self,
        signal: Tensor,
        settings: tuple,
        weights: list[Tensor],
        by_value: bool,
        prepare: Callable[[], list[PreparedKernel]],
    ) -> list[PreparedKernel] | None:
        """The kernels of all steps, kept from an earlier call or from now on; None where they cannot be.

        Args:
            signal: That the first kernel is for.
            settings: Of the mixer, all that kernels depend on besides weights and size.
            weights: That they follow from.
            by_value: How weights are compared.
            prepare: Makes them.
        """
        key = key_of(signal)
        entry, capturing = self.entries.get(key), is_capturing(signal)
        if entry is not None and entry.is_of(settings, weights, by_value):
            if capturing and not any(entry is other for other in self.captured):
                self.captured.append(entry)
            return entry.kernels
        if capturing:
            return None  # what is made now has no numbers before the graph runs
        with torch.inference_mode(False), torch.no_grad():
            # Copied first: what another thread changes meanwhile is seen by the next call
            copies = [weight.detach().clone() if by_value else weight.detach() for weight in weights]
            versions = [_version(weight) for weight in weights]
            entry = _Entry(settings, [] if by_value else weights, copies, versions, prepare())
        if signal.is_cuda:
            torch.cuda.current_stream(signal.device).synchronize()  # calls on other streams find them finished
        self.entries = {key: entry} if by_value else {**self.entries, key: entry}
        return entry.kernels


def key_of(signal: Tensor) -> str:
    """Size, dtype and device; as text, which binds a compiled graph to them."""
    size = "x".join([f"{n}" for n in signal.shape[2:]])
    return f"{size} {signal.dtype} {signal.device}"


def is_capturing(signal: Tensor) -> bool:
    """Whether a CUDA graph takes down what is done with the signal."""
    return signal.is_cuda and torch.cuda.is_current_stream_capturing()


def _version(weight: Tensor) -> int:
    """Counts changes in place; not those through `.data`, by fused optimizers, or of tensors made in inference mode."""
    return 0 if weight.is_inference() else weight._version


def _is_same_memory(kept: Tensor, weight: Tensor) -> bool:
    same = kept.data_ptr() == weight.data_ptr() and kept.shape == weight.shape
    return same and kept.stride() == weight.stride()
