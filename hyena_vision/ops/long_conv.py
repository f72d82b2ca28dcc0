r"""Long convolutions: every output position sums over a kernel that may be as large as the signal, or larger.

Both operators *convolve*: the kernel is flipped relative to `torch.nn.functional.conv1d/2d`, which correlate. A centred
kernel of extent K has its centre, the tap of zero displacement, at index `K // 2`.
"""

import torch
from torch import Tensor

from hyena_vision.ops import prepared_kernel
from hyena_vision.ops.backends import select
from hyena_vision.ops.library import check_tensors, sum_dtype
from hyena_vision.ops.prepared_kernel import PreparedKernel


def long_conv1d(
    x: Tensor,
    kernel: Tensor | PreparedKernel,
    skip: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    out_gate: Tensor | None = None,
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
            dtype of the sums. Or a prepared kernel, without gradients; then no skip, and settings as it was prepared.
        skip: (C,) weight $d$ of the unconvolved input (the papers call it bias), or None.
        gate: As x, multiplied with it before the convolution and the skip, or None.
        out_gate: As x, multiplied with the result, or None.
        causal: Whether the kernel starts at displacement 0 instead of being centred on it.
        backend: Name of the implementation. None takes what `hyena_vision.ops.backend_table` has for the GPU, else the
            first that can run of `hyena_vision.ops.available_backends`.

    Returns:
        (B, C, L), dtype of x, promoted with that of the gates. Sums run in float32, in float64 for float64 input.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend's name is unknown; the message has what was given.
        TypeError: A dtype that is not listed above.
        RuntimeError: The named backend cannot run here, or a gradient is wanted of a prepared kernel.

    Cost:
        `cpp`: O(B C L log L) time, a block of channels in the cache from one gate to the other.
        `blocked`: O(B C L (sqrt(L) + log L)) time with small matrix products, for L with a divisor near its root.
        `fft`: O(B C F log F) time with F about L + min(K, L), and 2 L for any K in exported programs.
        `triton`: O(B C L sqrt(L)) time on tensor cores, L <= 65536; 8 bytes of memory traffic per token and channel
            in bfloat16 with both gates up to L = 16384, else 40.
        `reference`: O(B C L K) time.

    Source:
        Hyena (arXiv:2302.10866), section 3.1; the centred form is that of HyenaPixel (arXiv:2402.19305).
    """
    if isinstance(kernel, PreparedKernel):
        return _convolve_prepared(x, kernel, skip, gate, out_gate)
    _check(x, kernel, skip, "L")
    return _convolve(x, kernel, skip, gate, out_gate, _centre1d(kernel, causal), False, backend)


def long_conv2d(
    x: Tensor,
    kernel: Tensor | PreparedKernel,
    skip: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    out_gate: Tensor | None = None,
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
            is cast to the dtype of the sums. Or a prepared kernel, without gradients; then no skip, and settings as it
            was prepared.
        skip: (C,) weight $d$ of the unconvolved input (the papers call it bias), or None.
        gate: As x, multiplied with it before the convolution and the skip, or None.
        out_gate: As x, multiplied with the result, or None.
        padding: "linear" (zeros outside) or "circular" (periodic).
        backend: Name of the implementation. None takes what `hyena_vision.ops.backend_table` has for the GPU, else the
            first that can run of `hyena_vision.ops.available_backends`.

    Returns:
        (B, C, H, W), dtype of x, promoted with that of the gates. Sums run in float32, in float64 for float64 input.

    Raises:
        ValueError: Shapes, devices or padding do not fit, or the backend's name is unknown; the message has what was
            given.
        TypeError: A dtype that is not listed above.
        RuntimeError: The named backend cannot run here, or a gradient is wanted of a prepared kernel.

    Cost:
        `cpp`: O(B C H W log(H W)) time, a block of channels in the cache from one gate to the other.
        `blocked`: O(B C H W (W + log H)) time with small matrix products.
        `fft`: O(B C Fh Fw log(Fh Fw)) time, about 2H x 2W for the global kernel (2H-1, 2W-1); "circular" needs H x W.
        `triton`: O(B C H W (H + W)) time on tensor cores, H, W <= 256; 8 bytes of memory traffic per token and channel
            in bfloat16 with both gates up to 128 x 128, else 40.
        `reference`: O(B C H W Kh Kw) time.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3; the 1D operator is Hyena's (arXiv:2302.10866).
    """
    if isinstance(kernel, PreparedKernel):
        return _convolve_prepared(x, kernel, skip, gate, out_gate)
    _check(x, kernel, skip, "H, W")
    _check_padding(padding)
    return _convolve(x, kernel, skip, gate, out_gate, _centre2d(kernel), padding == "circular", backend)


def prepare_kernel1d(
    x: Tensor, kernel: Tensor, skip: Tensor | None = None, *, causal: bool = False, backend: str | None = None
) -> PreparedKernel:
    """Do the part of `long_conv1d` that depends on the kernel alone, to be used for many signals without gradients.

    Args:
        x: (B, C, L), a signal of the size, dtype and device that will come; its values do not matter.
        kernel: As for `long_conv1d`.
        skip: As for `long_conv1d`.
        causal: As for `long_conv1d`.
        backend: As for `long_conv1d`.

    Returns:
        What `long_conv1d` takes as its kernel: data that can be copied and pickled. `cpp`, `blocked` and `fft` hold a
        spectrum of about 8 C L bytes (float32).

    Raises:
        ValueError, TypeError, RuntimeError: As `long_conv1d`.
    """
    _check(x, kernel, skip, "L")
    return prepared_kernel.prepare(x, kernel, skip, _centre1d(kernel, causal), False, backend)


def prepare_kernel2d(
    x: Tensor, kernel: Tensor, skip: Tensor | None = None, *, padding: str = "linear", backend: str | None = None
) -> PreparedKernel:
    """Do the part of `long_conv2d` that depends on the kernel alone, to be used for many images without gradients.

    Args:
        x: (B, C, H, W), an image of the size, dtype and device that will come; its values do not matter.
        kernel: As for `long_conv2d`.
        skip: As for `long_conv2d`.
        padding: As for `long_conv2d`.
        backend: As for `long_conv2d`.

    Returns:
        What `long_conv2d` takes as its kernel: data that can be copied and pickled. `cpp`, `blocked` and `fft` hold a
        spectrum of about 16 C H W bytes (float32; `blocked` and `fft` 4 C H W if "circular").

    Raises:
        ValueError, TypeError, RuntimeError: As `long_conv2d`.
    """
    _check(x, kernel, skip, "H, W")
    _check_padding(padding)
    return prepared_kernel.prepare(x, kernel, skip, _centre2d(kernel), padding == "circular", backend)


def _centre1d(kernel: Tensor, causal: bool) -> list[int]:
    """Index of displacement 0."""
    return [0 if causal else kernel.shape[-1] // 2]


def _centre2d(kernel: Tensor) -> list[int]:
    return [kernel.shape[-2] // 2, kernel.shape[-1] // 2]


def _convolve(
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    centre: list[int],
    circular: bool,
    backend: str | None,
) -> Tensor:
    _check_gates(x, gate, out_gate)
    x = x.to(torch.float64) if sum_dtype(x, gate, out_gate) == torch.float64 else x
    chosen = select(backend, x, kernel, use=_use(x, kernel, skip, gate, out_gate), circular=circular)
    if not torch.compiler.is_exporting() and not x.numel():
        return _empty(x, kernel, skip, gate, out_gate, len(centre))
    return chosen.long_conv(x, kernel, skip, gate, out_gate, centre, circular)


def _use(x: Tensor, kernel: Tensor, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None) -> str | None:
    """What a table of backends calls this call, None for one that none is for."""
    if any(t is not None and t.dtype != x.dtype for t in (gate, out_gate)):
        return None
    wanted = any(t is not None and t.requires_grad for t in (x, kernel, skip, gate, out_gate))
    return "training" if wanted and torch.is_grad_enabled() else "inference"


def _empty(
    x: Tensor, kernel: Tensor, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None, rank: int
) -> Tensor:
    """The result for no samples or no channels, with gradients that are zero or empty."""
    factor = kernel.sum(tuple(range(-rank, 0)))
    factor = factor if skip is None else factor + skip
    y = x * factor[(..., *[None] * rank)].to(x.dtype)
    for tensor in (gate, out_gate):
        y = y if tensor is None else y * tensor
    return y


def _convolve_prepared(
    x: Tensor, kernel: PreparedKernel, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None
) -> Tensor:
    if skip is not None:
        raise ValueError("a prepared kernel has its skip already, got another one")
    _check_gates(x, gate, out_gate)
    return prepared_kernel.convolve(x, kernel, gate, out_gate)


def _check_gates(x: Tensor, gate: Tensor | None, out_gate: Tensor | None) -> None:
    """Refuse gates that do not fit."""
    check_tensors(x, gate=gate, out_gate=out_gate)
    for name, tensor in (("gate", gate), ("out_gate", out_gate)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x: x has {tuple(x.shape)}, {name} {tuple(tensor.shape)}")


def _check_padding(padding: str) -> None:
    if padding not in ("linear", "circular"):
        raise ValueError(f"padding must be 'linear' or 'circular', got {padding!r}")


def _check(x: Tensor, kernel: Tensor, skip: Tensor | None, axes: str) -> None:
    """Refuse arguments that would fail later or, worse, broadcast to a wrong number."""
    rank = axes.count(",") + 1
    check_tensors(x, kernel=kernel, skip=skip)
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
