r"""Long convolutions: every output position sums over a kernel that may be as large as the signal, or larger.

Both operators *convolve*: the kernel is flipped relative to `torch.nn.functional.conv1d/2d`, which correlate. A centred
kernel of extent K has its centre, the tap of zero displacement, at index `K // 2`.
"""

import torch
from torch import Tensor

from hyena_vision.ops.backends import select

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def long_conv1d(
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None = None,
    *,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Convolve each channel of a sequence with its own long kernel, zeros outside the sequence.

    $$y_{b,c,n} = \sum_{j=0}^{K-1} k_{c,j}\, x_{b,c,n+s-j} + d_c\, x_{b,c,n}, \quad
    x_{b,c,m} = 0 \text{ for } m \notin [0, L)$$

    with $s = 0$ if causal (position n sees positions up to n), else $s = \lfloor K/2 \rfloor$ (centred, bidirectional).

    Args:
        x: (B, C, L), float16 / bfloat16 / float32 / float64, any strides.
        kernel: (C, K) shared by the batch, or (B, C, K) one per sample; any K >= 1, floating point. It is cast to the
            dtype of the sums.
        skip: (C,) weight $d$ of the unconvolved input (the papers call it bias), or None.
        causal: Whether the kernel starts at displacement 0 instead of being centred on it.
        backend: Name of the implementation, None for the fastest that can run; see
            `hyena_vision.ops.available_backends`.

    Returns:
        (B, C, L), dtype of x. Sums run in float32, in float64 for float64 input.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend's name is unknown; the message has what was given.
        TypeError: A dtype that is not listed above.
        RuntimeError: The named backend cannot run here.

    Cost:
        `fft`: O(B C F log F) time with F about L + min(K, L), and 2 L for any K in exported programs.
        `reference`: O(B C L K) time.

    Source:
        Hyena (arXiv:2302.10866), section 3.1; the centred form is that of HyenaPixel (arXiv:2402.19305).
    """
    _check(x, kernel, skip, "L")
    return select(backend, x, kernel).long_conv1d(x, kernel, skip, causal)


def long_conv2d(
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None = None,
    *,
    padding: str = "linear",
    backend: str | None = None,
) -> Tensor:
    r"""Convolve each channel of an image with its own long, centred kernel.

    $$y_{b,c,m,n} = \sum_{i=0}^{K_h-1} \sum_{j=0}^{K_w-1} k_{c,i,j}\,
    x_{b,c,\,m+\lfloor K_h/2 \rfloor-i,\,n+\lfloor K_w/2 \rfloor-j} + d_c\, x_{b,c,m,n}$$

    where x outside the image is 0 ("linear") or repeats with the image's period ("circular").

    Args:
        x: (B, C, H, W), float16 / bfloat16 / float32 / float64, any strides.
        kernel: (C, Kh, Kw) shared by the batch, or (B, C, Kh, Kw) one per sample; any Kh, Kw >= 1, floating point. It
            is cast to the dtype of the sums.
        skip: (C,) weight $d$ of the unconvolved input (the papers call it bias), or None.
        padding: "linear" (zeros outside) or "circular" (periodic).
        backend: Name of the implementation, None for the fastest that can run; see
            `hyena_vision.ops.available_backends`.

    Returns:
        (B, C, H, W), dtype of x. Sums run in float32, in float64 for float64 input.

    Raises:
        ValueError: Shapes, devices or padding do not fit, or the backend's name is unknown; the message has what was
            given.
        TypeError: A dtype that is not listed above.
        RuntimeError: The named backend cannot run here.

    Cost:
        `fft`: O(B C Fh Fw log(Fh Fw)) time, about 2H x 2W for the global kernel (2H-1, 2W-1); "circular" needs H x W.
        `reference`: O(B C H W Kh Kw) time.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3; the 1D operator is Hyena's (arXiv:2302.10866).
    """
    _check(x, kernel, skip, "H, W")
    if padding not in ("linear", "circular"):
        raise ValueError(f"padding must be 'linear' or 'circular', got {padding!r}")
    return select(backend, x, kernel).long_conv2d(x, kernel, skip, padding)


def _check(x: Tensor, kernel: Tensor, skip: Tensor | None, axes: str) -> None:
    """Refuse arguments that would fail later or, worse, broadcast to a wrong number."""
    rank = axes.count(",") + 1
    if x.dtype not in _DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    for name, tensor in (("kernel", kernel), ("skip", skip)):
        if tensor is None:
            continue
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x: x is on {x.device}, {name} on {tensor.device}")
    if x.ndim != rank + 2:
        raise ValueError(f"x must have shape (B, C, {axes}), got {tuple(x.shape)}")
    taps = axes.replace("L", "K").replace("H", "Kh").replace("W", "Kw")
    expected = f"kernel must have shape (C, {taps}) or (B, C, {taps})"
    given = f"x has shape {tuple(x.shape)}, kernel {tuple(kernel.shape)}"
    if kernel.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"{expected}: {given}")
    if kernel.shape[-rank - 1] != x.shape[1] or (kernel.ndim == rank + 2 and kernel.shape[0] != x.shape[0]):
        raise ValueError(f"{expected} with x's B and C: {given}")
    if any(size == 0 for size in (*x.shape[2:], *kernel.shape[-rank:])):
        raise ValueError(f"no axis of the signal or of the kernel may be empty: {given}")
    if skip is not None and tuple(skip.shape) != (x.shape[1],):
        raise ValueError(f"skip must have shape (C,): x has shape {tuple(x.shape)}, skip {tuple(skip.shape)}")
