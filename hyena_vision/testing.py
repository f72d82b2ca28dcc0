"""Problems and error measures that tests and benchmarks of the operators share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Problem", "assert_within_tolerance", "lay_out", "problems_1d", "problems_2d", "relative_errors"]

# Relative RMS error, and worst element over the RMS of the truth, by dtype of the input.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (3e-6, 2e-5),
    torch.float16: (5e-4, 5e-3),
    torch.bfloat16: (4e-3, 4e-2),
}

LAYOUTS = ("contiguous", "channels_last", "slice")


@dataclass(frozen=True)
class Problem:
    """Arguments of one call of a long convolution.

    Attributes:
        size: Extents of the signal, (L,) or (H, W).
        kernel_size: Extents of the kernel, as many.
        batch: B.
        channels: C.
        per_sample: Whether each sample has its own kernel.
        skip: Whether there is a skip weight.
        layout: One of `LAYOUTS`: how x lies in memory.

    Example:
        >>> [t.shape for t in Problem((4, 5), (7, 9)).tensors()]
        [torch.Size([2, 3, 4, 5]), torch.Size([3, 7, 9]), torch.Size([3])]
    """

    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    batch: int = 2
    channels: int = 3
    per_sample: bool = False
    skip: bool = True
    layout: str = "contiguous"

    def tensors(self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> list[Tensor | None]:
        """Random x, kernel and skip, of unit scale; the kernel keeps the scale of its input.

        Args:
            dtype: Of all tensors.
            device: Where they are.
            seed: Of the generator, which is on the CPU: values are the same on every device.

        Returns:
            x (B, C, *size), kernel (C, *kernel_size) or (B, C, *kernel_size), skip (C,) or None.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = draw(self.batch, self.channels, *self.size)
        kernel_shape = (self.channels, *self.kernel_size)
        kernel = draw(self.batch, *kernel_shape) if self.per_sample else draw(*kernel_shape)
        taps = torch.tensor([min(k, 2 * n - 1) for k, n in zip(self.kernel_size, self.size, strict=True)])
        kernel = kernel / taps.prod().sqrt()
        skip = draw(self.channels) if self.skip else None
        x, kernel, skip = (None if t is None else t.to(device, dtype) for t in (x, kernel, skip))
        return [lay_out(x, self.layout), kernel, skip]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values (B, C, *) in another memory layout.

    Args:
        x: Any tensor.
        layout: "contiguous"; "channels_last", with C as the fastest axis; "slice", a window of a larger tensor that is
            NaN elsewhere, so that a read outside shows.

    Returns:
        A tensor equal to x.

    Example:
        >>> lay_out(torch.ones(1, 2, 3, 4), "channels_last").stride()
        (24, 1, 8, 2)
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    buffer = x.new_full([n + 3 for n in x.shape], float("nan"))
    window = buffer[tuple(slice(1, n + 1) for n in x.shape)]
    window.copy_(x)
    return window


def relative_errors(given: Tensor, truth: Tensor) -> tuple[float, float]:
    """RMS error over the RMS of the truth, and worst error over the same.

    Args:
        given: Any dtype, not empty.
        truth: float64, same shape.

    Returns:
        Both numbers; 0 where the truth is zero and met exactly.

    Example:
        >>> relative_errors(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))
        (0.0, 0.0)
    """
    error = (given.detach().double() - truth.detach()).flatten()
    scale = truth.detach().square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return (error.square().mean().sqrt() / scale).item(), (error.abs().max() / scale).item()


def assert_within_tolerance(given: Tensor, truth: Tensor, dtype: torch.dtype, what: str = "result") -> None:
    """Check a result against the truth by the tolerances of its input's dtype.

    Args:
        given: The result.
        truth: float64, same shape.
        dtype: Key of `TOLERANCES`.
        what: Name for the message.

    Raises:
        AssertionError: An error is too large or not finite; the message has the figures.

    Example:
        >>> assert_within_tolerance(torch.ones(2), torch.ones(2), torch.float32)
    """
    rms, worst = relative_errors(given, truth)
    rms_bound, worst_bound = TOLERANCES[dtype]
    if not (rms <= rms_bound and worst <= worst_bound):
        raise AssertionError(
            f"{what} in {dtype}: relative RMS {rms:.2e} (at most {rms_bound:.0e}), "
            f"worst / RMS {worst:.2e} (at most {worst_bound:.0e})"
        )


def problems_1d(lengths: Sequence[int] = (1, 2, 5, 12, 37, 64)) -> list[Problem]:
    """Problems of `long_conv1d`: kernels of 1 tap, about the signal's length, and far beyond it.

    Example:
        >>> all(len(problem.size) == 1 for problem in problems_1d())
        True
    """
    return _problems([((n,), (k,)) for n in lengths for k in sorted({1, 2, n, n + 1, 2 * n - 1, 3 * n + 2})])


def problems_2d(sizes: Sequence[tuple[int, int]] = ((1, 1), (4, 4), (5, 8), (7, 3), (14, 14))) -> list[Problem]:
    """Problems of `long_conv2d`: rectangles, kernels of 1 tap, about the image's size, and beyond it.

    Example:
        >>> all(len(problem.size) == 2 for problem in problems_2d())
        True
    """
    return _problems(
        [
            ((h, w), kernel)
            for h, w in sizes
            for kernel in ((1, 1), (3, 2), (h, w), (2 * h - 1, 2 * w - 1), (2 * h + 3, max(1, w - 1)))
        ]
    )


def _problems(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Problem]:
    return [
        Problem(size, kernel, per_sample=i % 3 == 1, skip=i % 4 != 3, layout=LAYOUTS[i % len(LAYOUTS)])
        for i, (size, kernel) in enumerate(shapes)
    ]
