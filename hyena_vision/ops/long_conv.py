r"""Long convolutions: every output position sums over a kernel that may be as large as the signal, or larger.

Both operators *convolve*: the kernel is flipped relative to `torch.nn.functional.conv1d/2d`, which correlate. A centred
kernel of extent K has its centre, the tap of zero displacement, at index `K // 2`.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from hyena_vision.ops import fft, prepared_kernel
from hyena_vision.ops.backends import BACKENDS, select
from hyena_vision.ops.prepared_kernel import PreparedKernel
from hyena_vision.ops.register import register_operator
from hyena_vision.ops.tensors import (
    Taps,
    check_gates,
    check_tensors,
    empty_gated_result,
    empty_result,
    laid_out_like,
    sum_dtype,
)
from hyena_vision.ops.watchers import is_compiling, is_plain


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
        `fft`: O(B C F log F) time with F about L + min(K, L), and 2 L for any K in exported programs.
        `triton`: O(B C L sqrt(L)) time on tensor cores, L <= 65536; 8 bytes of memory traffic per token and channel
            in bfloat16 with both gates up to L = 16384, else 40.
        `reference`: O(B C L K) time.

    Source:
        Hyena (arXiv:2302.10866), section 3.1; the centred form is that of HyenaPixel (arXiv:2402.19305).
    """
    if isinstance(kernel, PreparedKernel):
        return prepared_kernel.convolve(x, kernel, skip, gate, out_gate)
    check_arguments(x, kernel, skip, 1)
    return long_conv(x, kernel, skip, gate, out_gate, taps1d(kernel, causal), backend)


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
        `fft`: O(B C Fh Fw log(Fh Fw)) time, about 2H x 2W for the global kernel (2H-1, 2W-1); "circular" needs H x W.
        `triton`: O(B C H W (H + W)) time on tensor cores, H, W <= 256; 8 bytes of memory traffic per token and channel
            in bfloat16 with both gates up to 128 x 128, else 40.
        `reference`: O(B C H W Kh Kw) time.

    Source:
        HyenaPixel (arXiv:2402.19305), section 3; the 1D operator is Hyena's (arXiv:2302.10866).
    """
    if isinstance(kernel, PreparedKernel):
        return prepared_kernel.convolve(x, kernel, skip, gate, out_gate)
    check_arguments(x, kernel, skip, 2)
    return long_conv(x, kernel, skip, gate, out_gate, taps2d(kernel, padding), backend)


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
        What `long_conv1d` takes as its kernel: data that can be copied and pickled. `cpp` and `fft` hold a
        spectrum of about 8 C L bytes (float32).

    Raises:
        ValueError, TypeError, RuntimeError: As `long_conv1d`.
    """
    check_arguments(x, kernel, skip, 1)
    return prepared_kernel.prepare(x, kernel, skip, taps1d(kernel, causal), backend)


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
        What `long_conv2d` takes as its kernel: data that can be copied and pickled. `cpp` and `fft` hold a
        spectrum of about 16 C H W bytes (float32; `fft` 4 C H W if "circular").

    Raises:
        ValueError, TypeError, RuntimeError: As `long_conv2d`.
    """
    check_arguments(x, kernel, skip, 2)
    return prepared_kernel.prepare(x, kernel, skip, taps2d(kernel, padding), backend)


def taps1d(kernel: Tensor, causal: bool) -> Taps:
    """Where the taps of a sequence's kernel lie."""
    extent = kernel.shape[-1]
    return Taps((extent,), (0 if causal else extent // 2,), False)


def taps2d(kernel: Tensor, padding: str) -> Taps:
    """Where the taps of an image's kernel lie."""
    if padding not in ("linear", "circular"):
        raise ValueError(f"padding must be 'linear' or 'circular', got {padding!r}")
    extents = tuple(kernel.shape[-2:])
    return Taps(extents, (extents[0] // 2, extents[1] // 2), padding == "circular")


def long_conv(
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    taps: Taps,
    name: str | None,
) -> Tensor:
    """A convolution of either rank, on checked arguments but for the gates."""
    check_gates(x, gate, out_gate)
    x = x.to(torch.float64) if sum_dtype(x, gate, out_gate) == torch.float64 else x
    backend = select(name, x, kernel, use=_use(x, kernel, skip, gate, out_gate), circular=taps.circular)
    if backend.gradients is None:
        return backend.convolve(x, backend.prepare(x, kernel, skip, taps), gate, out_gate, taps)
    if backend.name == "fft" and not torch.compiler.is_dynamo_compiling():
        # Whoever looks on sees transforms, and counts them; other backends have nothing to show, or have refused
        if not is_plain(x, kernel, skip, gate, out_gate):
            return fft.convolve_openly(x, kernel, skip, gate, out_gate, taps)
    return _operator(x, kernel, skip, gate, out_gate, taps.centre, taps.circular, backend.name)


def _use(x: Tensor, kernel: Tensor, skip: Tensor | None, gate: Tensor | None, out_gate: Tensor | None) -> str | None:
    """What a table of backends calls this call, None for one that none is for."""
    if any(t is not None and t.dtype != x.dtype for t in (gate, out_gate)):
        return None
    wanted = any(t is not None and t.requires_grad for t in (x, kernel, skip, gate, out_gate))
    return "training" if wanted and torch.is_grad_enabled() else "inference"


def _forward(
    x: Tensor,
    kernel: Tensor,
    skip: Optional[Tensor],  # noqa: UP045  torch reads the schema from this spelling
    gate: Optional[Tensor],  # noqa: UP045
    out_gate: Optional[Tensor],  # noqa: UP045
    centre: Sequence[int],
    circular: bool,
    backend: str,
) -> Tensor:
    if not x.numel():
        return empty_gated_result(x, gate, out_gate)
    chosen, taps = BACKENDS[backend], _taps(kernel, centre, circular)
    return chosen.convolve(x, chosen.prepare(x, kernel, skip, taps), gate, out_gate, taps)


def _result_like(x, kernel, skip, gate, out_gate, centre, circular, backend):
    if backend == "triton":
        from hyena_vision.ops.triton.long_conv import make_tables

        make_tables(x, circular)
    return empty_gated_result(x, gate, out_gate)


def _taps(kernel: Tensor, centre: Sequence[int], circular: bool) -> Taps:
    return Taps(tuple(kernel.shape[-len(centre) :]), tuple(centre), circular)


def _gradients(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    skip: Optional[Tensor],  # noqa: UP045
    gate: Optional[Tensor],  # noqa: UP045
    out_gate: Optional[Tensor],  # noqa: UP045
    centre: Sequence[int],
    circular: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    compute = BACKENDS[backend].gradients
    if compute is None or not x.numel():
        empty = _gradients_like(dy, x, kernel, skip, gate, out_gate, centre, circular, backend)
        dx, dkernel, dskip, dgate, dout_gate = (t.zero_() for t in empty)
        return dx, dkernel, dskip, dgate, dout_gate
    dx, dkernel, *rest = compute(dy, x, kernel, skip, gate, out_gate, _taps(kernel, centre, circular))
    # Empty for None: an operator returns tensors
    dskip, dgate, dout_gate = (x.new_empty(0) if t is None else t for t in rest)
    return dx, laid_out_like(kernel, dkernel), dskip, dgate, dout_gate


def _gradients_like(dy, x, kernel, skip, gate, out_gate, centre, circular, backend):
    signals = (x.new_empty(0) if t is None else empty_result(t) for t in (gate, out_gate))
    dskip = x.new_empty(0) if skip is None else skip.new_empty(skip.shape)
    return empty_result(x), torch.empty_like(kernel), dskip, *signals


_backward_operator = register_operator("long_conv_backward", _gradients, _gradients_like)


def _keep_arguments(ctx, inputs, output) -> None:
    *tensors, ctx.centre, ctx.circular, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    tensors = x, kernel, skip, gate, out_gate = ctx.saved_tensors
    if torch.is_grad_enabled() and not is_compiling():
        taps = _taps(kernel, ctx.centre, ctx.circular)
        found = fft.gradients_openly(dy, x, kernel, skip, gate, out_gate, taps)
    else:
        found = _backward_operator(dy, *tensors, ctx.centre, ctx.circular, ctx.backend)
    return *(None if t is None else grad for t, grad in zip(tensors, found, strict=True)), None, None, None


_operator = register_operator("long_conv", _forward, _result_like, keep=_keep_arguments, backward=_backward)


def check_arguments(x: Tensor, kernel: Tensor, skip: Tensor | None, rank: int) -> None:
    """Refuse arguments that would fail later or, worse, broadcast to a wrong number."""
    axes, taps = ("L", "K") if rank == 1 else ("H, W", "Kh, Kw")
    check_tensors(x, kernel=kernel, skip=skip)
    if x.ndim != rank + 2:
        raise ValueError(f"x must have shape (B, C, {axes}), got {tuple(x.shape)}")
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
