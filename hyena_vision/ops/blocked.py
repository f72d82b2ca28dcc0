r"""The `blocked` backend: long convolutions on the CPU, in blocks of channels that stay in the cache.

A signal is read as `lines` x `rows` numbers per channel: the axes (H, W) of an image, or remainder and quotient of a
sequence's index by `lines`. Its spectrum is made in two steps.

1. Rows, by one real matrix product per line: $R_{a,f} = \sum_b u_{a,b}\, e^{-2\pi i f b / T_b}$, f = 0..T_b // 2.
   The product reads tokens as they lie in memory, channels last or first, writes channels first, and sees no padding. A
   padded copy, a transpose and an FFT would be three passes over memory.
2. Lines, by FFTs of length T_a in a padded buffer that each block uses again, or, where T_a is short, by another
   product. In 1D this is the second half of a Cooley-Tukey step,
   $X_{f + T_b g} = \sum_a e^{-2\pi i f a / (T_a T_b)} R_{a,f}\, e^{-2\pi i g a / T_a}$: the padding is all in the rows,
   and the lines need none.

The kernel lies periodically, displacement 0 first, so that nothing has to be shifted; the skip is added to that tap.
The backward pass has the same two steps: dx is a convolution with the conjugate spectrum, and the gradient of the
kernel's spectrum is the batch's sum of $\overline{X} \cdot DY$. Nothing of the transform's size outlives a call, except
what `prepare` returns; each thread keeps two padded buffers of the size of a block. docs/cpu.md has figures.
"""

import itertools
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyena_vision.ops.fft import fold, transform_size
from hyena_vision.ops.library import empty_result, full_precision, sum_dtype

# Spectrum of one block and thread: half of a core's second-level cache, which buffers and results share.
_BLOCK_BYTES = 2**19
# Longest lines that are transformed by a matrix product: it needs no transpose, and more arithmetic than an FFT.
_PRODUCT_LINES = 32
# Of the rows' transforms, which are made for several blocks in one product.
_GROUP_BYTES = 2**24
# Of the spectra that are made together; making them takes a few times as much.
_SPECTRA_BYTES = 2**22


class Plan(NamedTuple):
    """How the signals of one size are transformed.

    Attributes:
        size: (H, W) or (L,).
        lines: Numbers per channel that the FFTs run over.
        rows: Numbers per channel that the matrix products sum over; lines * rows >= L in 1D.
        line_transform: T_a.
        row_transform: T_b.
        circular: Whether displacements are taken modulo the size.
    """

    size: tuple[int, ...]
    lines: int
    rows: int
    line_transform: int
    row_transform: int
    circular: bool

    @property
    def frequencies(self) -> int:
        """Frequencies kept of each row."""
        return self.row_transform // 2 + 1

    @property
    def by_product(self) -> bool:
        """Whether lines, too, are transformed by a matrix product."""
        return self.line_transform <= _PRODUCT_LINES

    @property
    def periods(self) -> tuple[int, ...]:
        """Period of the convolution on each axis."""
        if len(self.size) == 1:
            return (self.line_transform * self.row_transform,)
        return self.line_transform, self.row_transform


def make_plan(size: Sequence[int], kernel_size: Sequence[int], centre: Sequence[int], circular: bool) -> Plan:
    """Choose the transforms of signals of a size, for kernels whose displacement 0 is at `centre`."""
    reaches = [
        min(max(middle, taps - 1 - middle), n - 1) for n, taps, middle in zip(size, kernel_size, centre, strict=True)
    ]
    if len(size) == 2:
        # A multiple of 4: an FFT of 63 numbers takes longer than one of 64
        lengths = [
            n if circular else 4 * transform_size(-(-(n + reach) // 4)) for n, reach in zip(size, reaches, strict=True)
        ]
        return Plan(tuple(size), *size, *lengths, circular)
    (length,), (reach,) = size, reaches
    rows = _rows_of(length)
    lines = -(-length // rows)
    return Plan((length,), lines, rows, lines, -(-(length + reach) // lines), circular)


def _rows_of(length: int) -> int:
    """The divisor nearest to the square root, or the square root where all divisors are far from it."""
    root = math.isqrt(length)
    for distance in range(root // 2 + 1):
        for rows in (root - distance, root + distance):
            if rows > 0 and length % rows == 0:
                return rows
    return root


class _Tables(NamedTuple):
    forward: Tensor  # (rows, 2 F), cosines and negative sines in turn
    inverse: Tensor  # (rows, 2 F), with the weights of a half spectrum
    twiddle: Tensor | None  # (lines, F)
    line_forward: Tensor | None  # (T_a, lines), where lines are transformed by a product
    line_inverse: Tensor | None  # (lines, T_a)


@lru_cache(maxsize=32)
def _tables(plan: Plan, dtype: torch.dtype) -> _Tables:
    with torch.inference_mode(False), torch.no_grad():
        row = torch.arange(plan.rows, dtype=torch.float64, device="cpu")
        frequency = torch.arange(plan.frequencies, dtype=torch.float64, device="cpu")
        # Products modulo the period first: large angles would lose digits
        angle = torch.outer(row, frequency).remainder(plan.row_transform) * (2 * math.pi / plan.row_transform)
        forward = torch.stack([angle.cos(), -angle.sin()], dim=-1)
        weight = torch.full_like(frequency, 2 / plan.row_transform)
        weight[0] = 1 / plan.row_transform
        if plan.row_transform % 2 == 0:
            weight[-1] = 1 / plan.row_transform
        inverse = forward * weight[:, None]
        twiddle = None
        if len(plan.size) == 1:
            line = torch.arange(plan.lines, dtype=torch.float64, device="cpu")
            angle = torch.outer(line, frequency) * (-2 * math.pi / plan.periods[0])
            twiddle = torch.polar(torch.ones_like(angle), angle).to(_complex(dtype))
        line_forward = line_inverse = None
        if plan.by_product:
            angle = torch.outer(
                torch.arange(plan.line_transform, dtype=torch.float64, device="cpu"),
                torch.arange(plan.lines, dtype=torch.float64, device="cpu"),
            ) * (-2 * math.pi / plan.line_transform)
            matrix = torch.polar(torch.ones_like(angle), angle)
            line_forward = matrix.to(_complex(dtype))
            line_inverse = (matrix.T.conj_physical() / plan.line_transform).to(_complex(dtype)).contiguous()
        return _Tables(forward.flatten(1).to(dtype), inverse.flatten(1).to(dtype), twiddle, line_forward, line_inverse)


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def spectrum(kernel: Tensor, skip: Tensor | None, plan: Plan, centre: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Spectrum of a kernel, its skip included.

    Args:
        kernel: (..., C, *K).
        skip: (C,) or None.
        plan: Of the signals.
        centre: Index of displacement 0.
        dtype: Of the sums, float32 or float64.

    Returns:
        (..., C, F, T_a), complex, in the memory order in which transforms of signals come.
    """
    periodic = _lay_periodically(kernel, plan, centre, dtype)
    if skip is not None:
        periodic[(..., *[0] * len(centre))] += skip.to(dtype)
    lines = _transform_lines(torch.fft.rfft(_rows_last(periodic, plan)), plan)
    return lines.movedim(-1, -3).contiguous().movedim(-3, -1) if plan.by_product else lines


def _rows_last(periodic: Tensor, plan: Plan) -> Tensor:
    """(..., *periods) as (..., T_a, T_b)."""
    if len(plan.size) == 2:
        return periodic
    return periodic.unflatten(-1, (plan.row_transform, plan.line_transform)).transpose(-1, -2).contiguous()


def _transform_lines(lines: Tensor, plan: Plan) -> Tensor:
    """(..., T_a, F), transformed along rows, to (..., F, T_a)."""
    twiddle = _tables(plan, lines.real.dtype).twiddle
    if twiddle is not None:
        lines *= twiddle
    return torch.fft.fft(lines.transpose(-1, -2).contiguous())


def _lay_periodically(kernel: Tensor, plan: Plan, centre: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The kernel with displacement d at index d modulo the period, less the taps that reach no signal.

    The result is valid until the next call of this thread.
    """
    rank = len(plan.size)
    if plan.circular:
        kernel = kernel.to(dtype, copy=True)
        for axis, size, middle in zip(range(-rank, 0), plan.size, centre, strict=True):
            kernel = fold(kernel, axis, size, middle)
        return kernel
    from_to = []  # of each axis: (taps, places) from displacement 0 on, and of those before it
    for size, extent, middle in zip(plan.size, kernel.shape[-rank:], centre, strict=True):
        after, before = min(extent - middle, size), min(middle, size - 1)
        pairs = [
            (slice(middle, middle + after), slice(0, after)),
            (slice(middle - before, middle), slice(-before, None)),
        ]
        from_to.append(pairs if before else pairs[:1])
    used = tuple((to.start, to.stop) for pairs in from_to for _, to in pairs)
    shape = (*kernel.shape[:-rank], *plan.periods)
    per_sample = kernel.ndim > rank + 1  # too large to keep
    periodic = kernel.new_zeros(shape, dtype=dtype) if per_sample else _padded_buffer("kernel", shape, used, dtype)
    for pairs in itertools.product(*from_to):
        taps, places = zip(*pairs, strict=True)
        periodic[(..., *places)] = kernel[(..., *taps)]
    return periodic


def _taps_of(periodic: Tensor, axis: int, size: int, extent: int, centre: int, circular: bool) -> Tensor:
    """Adjoint of `_lay_periodically`: each tap's number, 0 for those that reach no signal."""
    if circular:
        index = torch.arange(extent, dtype=torch.int64, device=periodic.device)
        return periodic.index_select(axis, index.sub(centre).remainder(size))
    after, before = min(extent - centre, size), min(centre, size - 1)
    parts = periodic.narrow(axis, periodic.shape[axis] - before, before), periodic.narrow(axis, 0, after)
    rest = centre - before, extent - centre - after
    return F.pad(torch.cat(parts, axis), (0, 0) * (-axis - 1) + rest)


def _kernel_of(spectrum: Tensor, plan: Plan) -> Tensor:
    """Inverse of `spectrum`, up to the folding of the kernel into its period: (..., C, *periods)."""
    lines = torch.fft.ifft(spectrum).transpose(-1, -2)
    twiddle = _tables(plan, spectrum.real.dtype).twiddle
    if twiddle is not None:
        lines = lines * twiddle.conj_physical()
    kernel = torch.fft.irfft(lines.contiguous(), n=plan.row_transform)
    return kernel.transpose(-1, -2).flatten(-2) if len(plan.size) == 1 else kernel


_scratch = threading.local()


def _padded_buffer(purpose: str, shape: tuple[int, ...], used: Hashable, dtype: torch.dtype) -> Tensor:
    """Memory of this thread's last call if that was alike: the padding, which is all that must be zero, is still so."""
    key, (last, buffer) = (shape[1:], used, dtype), getattr(_scratch, purpose, (None, None))
    if key != last or len(buffer) < shape[0]:
        with torch.inference_mode(False):
            buffer = torch.zeros(shape, dtype=dtype, device="cpu")
        setattr(_scratch, purpose, (key, buffer))
    return buffer[: shape[0]]


def _even(total: int, limit: int) -> int:
    """Size of the parts, at most `limit`, that a total is cut into: all alike but the last."""
    return -(-total // -(-total // limit))


class _Work:
    """Buffers of one call, and the two steps of the transform for a few samples and channels."""

    def __init__(
        self, plan: Plan, batch: int, channels: int, dtype: torch.dtype, spectra_bytes: int | None = None
    ) -> None:
        self.plan, self.tables = plan, _tables(plan, dtype)
        element = torch.finfo(dtype).bits // 4
        of_channel = plan.frequencies * plan.line_transform * element
        block = max(1, _BLOCK_BYTES * torch.get_num_threads() // of_channel)
        self.samples = max(1, min(batch, block // channels))
        group = _GROUP_BYTES // (plan.lines * plan.frequencies * element)
        if spectra_bytes is not None:
            group = min(group, spectra_bytes // of_channel)
        self.group = _even(channels, max(block, group))
        if plan.by_product:
            self.block = self.group
        else:
            self.block = _even(self.group, block)
            shape = (self.samples, self.block, plan.frequencies, plan.line_transform)
            self.buffer = _padded_buffer("lines", shape, plan.lines, _complex(dtype))

    def groups(self, channels: int) -> Iterator[slice]:
        """Channels whose rows are transformed together."""
        return (slice(start, min(start + self.group, channels)) for start in range(0, channels, self.group))

    def blocks(self, group: slice) -> Iterator[slice]:
        """Channels of a group whose lines are transformed together."""
        size = group.stop - group.start
        return (slice(start, min(start + self.block, size)) for start in range(0, size, self.block))

    def rows(self, signal: Tensor) -> Tensor:
        """(s, lines, rows, c) real, any strides, to (s, lines, c, F) complex."""
        matrix = self.tables.forward
        samples, lines, rows, channels = signal.shape
        flat = signal.transpose(2, 3).reshape(samples * lines, channels, rows)
        product = torch.bmm(flat, matrix.expand(len(flat), *matrix.shape))
        return torch.view_as_complex(product.view(samples, lines, channels, -1, 2))

    def lines(self, rows: Tensor) -> Tensor:
        """(s, lines, c, F) to (s, c, F, T_a)."""
        samples, count, channels, _ = rows.shape
        if self.plan.by_product:
            if self.tables.twiddle is not None:
                rows *= self.tables.twiddle.unsqueeze(1)
            product = torch.matmul(self.tables.line_forward, rows.flatten(2))
            return product.view(samples, -1, channels, rows.shape[-1]).permute(0, 2, 3, 1)
        buffer = self.buffer[:samples, :channels]
        if self.tables.twiddle is None:
            buffer[..., :count].copy_(rows.permute(0, 2, 3, 1))
        else:
            torch.mul(rows.permute(0, 2, 3, 1), self.tables.twiddle.T, out=buffer)
        return torch.fft.fft(buffer)

    def lines_back(self, spectrum: Tensor, rows: Tensor) -> None:
        """Inverse of `lines`, less what is not kept, into (s, lines, c, F)."""
        if self.plan.by_product:
            flat = spectrum.permute(0, 3, 1, 2).flatten(2)
            torch.matmul(self.tables.line_inverse, flat, out=rows.flatten(2))
            if self.tables.twiddle is not None:
                rows *= self.tables.twiddle.conj_physical().unsqueeze(1)
            return
        lines = torch.fft.ifft(spectrum)[..., : self.plan.lines].permute(0, 3, 1, 2)
        if self.tables.twiddle is None:
            rows.copy_(lines)
        else:
            torch.mul(lines, self.tables.twiddle.conj_physical().unsqueeze(1), out=rows)

    def rows_back(self, rows: Tensor) -> Tensor:
        """(s, lines, c, F) complex to (s, lines, rows, c) real."""
        matrix = self.tables.inverse
        samples, lines, channels, _ = rows.shape
        flat = torch.view_as_real(rows).reshape(samples * lines, channels, -1).transpose(1, 2)
        return torch.bmm(matrix.expand(len(flat), *matrix.shape), flat).view(samples, lines, -1, channels)


def _padded(x: Tensor, plan: Plan) -> Tensor:
    """A sequence whose length is that of all lines; an image as it is."""
    rest = plan.lines * plan.rows - x.shape[-1] if len(plan.size) == 1 else 0
    return F.pad(x, (0, rest)) if rest else x


def _cropped(y: Tensor, plan: Plan) -> Tensor:
    """Without the values that `_padded` added."""
    if y.shape[2:] == plan.size:
        return y
    return empty_result(y[..., : plan.size[0]], keep_layout=True).copy_(y[..., : plan.size[0]])


def _as_lines(x: Tensor, plan: Plan) -> Tensor:
    """(B, C, *size) as (B, lines, rows, C)."""
    if len(plan.size) == 2:
        return x.permute(0, 2, 3, 1)
    return _padded(x, plan).unflatten(-1, (plan.rows, plan.lines)).permute(0, 3, 2, 1)


@full_precision("cpu")
def convolve(
    x: Tensor,
    spectrum_of: Callable[[slice], Tensor],
    plan: Plan,
    gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    spectra_bytes: int | None = None,
) -> Tensor:
    """out_gate * (kernel * (gate * x)), without gradients.

    Args:
        x: (B, C, *size), on the CPU.
        spectrum_of: Takes channels and gives the spectrum of their kernels: (c, F, T_a), or (B, c, F, T_a).
        plan: Of x.
        gate: As x, or None.
        out_gate: As x, or None.
        spectra_bytes: Size of the spectra that `spectrum_of` should be asked for at a time, where it has to compute.

    Returns:
        (B, C, *size), dtype of x.
    """
    dtype = sum_dtype(x)
    batch, channels = x.shape[:2]
    work = _Work(plan, batch, channels, dtype, spectra_bytes)
    y = empty_result(_padded(x, plan), keep_layout=True)
    y_lines = _as_lines(y, plan)
    signal, gate, out_gate = (None if t is None else _as_lines(t, plan) for t in (x, gate, out_gate))
    for group in work.groups(channels):
        spectrum = spectrum_of(group)
        for first in range(0, batch, work.samples):
            part = (slice(first, first + work.samples), slice(None), slice(None), group)
            u = signal[part].to(dtype)
            rows = work.rows(u if gate is None else u * gate[part])
            for block in work.blocks(group):
                product = work.lines(rows[:, :, block])
                product *= spectrum[block] if spectrum.ndim == 3 else spectrum[part[0], block]
                work.lines_back(product, rows[:, :, block])
            result = work.rows_back(rows)
            if out_gate is None:
                y_lines[part] = result
            else:
                torch.mul(result, out_gate[part], out=y_lines[part])
    return _cropped(y, plan)


def prepare(
    x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool
) -> tuple[Tensor, ...]:
    """Spectrum of a kernel for signals like x."""
    plan = make_plan(x.shape[2:], kernel.shape[-len(centre) :], centre, circular)
    spectrum_of, whole = _spectra(kernel, skip, centre, plan, sum_dtype(x)), None
    for group in _Work(plan, 1, x.shape[1], sum_dtype(x), _SPECTRA_BYTES).groups(x.shape[1]):
        part = spectrum_of(group)
        if whole is None:
            whole = _empty_spectrum((*part.shape[:-3], x.shape[1], *part.shape[-2:]), plan, part.dtype)
        whole[..., group, :, :] = part
    return (whole,)


def _empty_spectrum(shape: tuple[int, ...], plan: Plan, dtype: torch.dtype) -> Tensor:
    """Memory for (..., C, F, T_a), in the order in which transforms of signals come."""
    if not plan.by_product:
        return torch.empty(shape, dtype=dtype, device="cpu")
    *batch, channels, frequencies, lines = shape
    return torch.empty((*batch, lines, channels, frequencies), dtype=dtype, device="cpu").movedim(-3, -1)


def _spectra(
    kernel: Tensor, skip: Tensor | None, centre: Sequence[int], plan: Plan, dtype: torch.dtype
) -> Callable[[slice], Tensor]:
    """The spectra of some channels' kernels, when they are asked for."""
    axes = (slice(None),) * len(centre)

    def spectrum_of(group: slice) -> Tensor:
        return spectrum(kernel[(..., group, *axes)], None if skip is None else skip[group], plan, centre, dtype)

    return spectrum_of


def convolve_prepared(
    x: Tensor,
    tensors: Sequence[Tensor],
    gate: Tensor | None,
    out_gate: Tensor | None,
    extents: Sequence[int],
    centre: Sequence[int],
    circular: bool,
) -> Tensor:
    """`convolve` with what `prepare` made."""
    (spectrum,), plan = tensors, make_plan(x.shape[2:], extents, centre, circular)
    for tensor in (gate, out_gate):
        x = x if tensor is None else x.to(torch.promote_types(x.dtype, tensor.dtype))
    return convolve(x, lambda group: spectrum[..., group, :, :], plan, gate, out_gate)


def forward(x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool) -> Tensor:
    """The convolution without gates, on checked arguments."""
    plan = make_plan(x.shape[2:], kernel.shape[-len(centre) :], centre, circular)
    return convolve(x, _spectra(kernel, skip, centre, plan, sum_dtype(x)), plan, spectra_bytes=_SPECTRA_BYTES)


@full_precision("cpu")
def gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, skip: Tensor | None, centre: Sequence[int], circular: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, kernel and skip (empty for no skip)."""
    dtype, rank = sum_dtype(x), len(centre)
    batch, channels = x.shape[:2]
    plan = make_plan(x.shape[2:], kernel.shape[-rank:], centre, circular)
    work = _Work(plan, batch, channels, dtype, _SPECTRA_BYTES)
    spectrum_of = _spectra(kernel, skip, centre, plan, dtype)
    dx = empty_result(_padded(x, plan), keep_layout=True)
    dx_lines = _as_lines(dx, plan)
    dkernel = torch.empty_like(kernel)
    dskip = x.new_empty(0) if skip is None else torch.empty_like(skip)
    signal, dy = _as_lines(x, plan), _as_lines(grad, plan)
    for group in work.groups(channels):
        transposed = spectrum_of(group).conj_physical_()
        per_sample = transposed.ndim == 4
        products = torch.zeros_like(transposed)
        for first in range(0, batch, work.samples):
            part = (slice(first, first + work.samples), slice(None), slice(None), group)
            rows, dy_rows = work.rows(signal[part].to(dtype)), work.rows(dy[part].to(dtype))
            for block in work.blocks(group):
                spectrum_x = work.lines(rows[:, :, block]).conj_physical_()
                spectrum_dy = work.lines(dy_rows[:, :, block])
                if per_sample:
                    torch.mul(spectrum_x, spectrum_dy, out=products[part[0], block])
                    spectrum_dy *= transposed[part[0], block]
                else:
                    for one_x, one_dy in zip(spectrum_x, spectrum_dy, strict=True):
                        products[block].addcmul_(one_x, one_dy)
                    spectrum_dy *= transposed[block]
                work.lines_back(spectrum_dy, dy_rows[:, :, block])
            dx_lines[part] = work.rows_back(dy_rows)
        taps = _kernel_of(products, plan)
        if skip is not None:
            centres = taps[(..., *[0] * rank)]
            dskip[group] = centres.sum(0) if per_sample else centres
        for axis, extent, size, middle in zip(range(-rank, 0), kernel.shape[-rank:], plan.size, centre, strict=True):
            taps = _taps_of(taps, axis, size, extent, middle, circular)
        dkernel[(..., group, *[slice(None)] * rank)] = taps
    return _cropped(dx, plan), dkernel, dskip
