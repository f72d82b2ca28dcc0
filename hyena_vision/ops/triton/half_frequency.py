r"""Long convolutions as products with small real matrices: sizes, tables, and spectra of kernels.

A signal is read as H x W numbers per channel, with index a along H and b along W: the axes of an image, or remainder
and quotient of a sequence's index by H, $m = a + H b$. All sums run over real cosines and sines at
odd half-frequencies $\theta_k = 2 \pi (k + 1/2) / T$, k = 0..T/2 - 1, of a period T >= 2n - 1: no displacement wraps
onto another, and none of the T/2 frequencies of a real signal is its own conjugate, so that all matrices are square
and no frequency is a special case. Circular convolutions take $2 \pi k / n$, k = 0..n // 2, instead.

Transforms of an image are $A_c = u\, c^T,\ A_s = u\, s^T$ along W, and along H

$$X^{\pm} = P^{\pm} - i Q^{\pm}, \quad P^{\pm} = C A_c \mp S A_s, \quad Q^{\pm} = S A_c \pm C A_s$$

at the frequencies $(\theta_f, \pm \theta_g)$. A sequence needs half of it: with $A_c - i A_s$ multiplied by the twiddle
factor $e^{-2 \pi i (f + 1/2) a / T}$ and C, S at whole frequencies, $X^{+}$ alone has all frequencies $f + T_b g$
(Cooley and Tukey). The spectrum of a kernel has the weights of the inverse transform in it, and its skip.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Longest axis of a tile: 256 x 256 numbers are an image of 256 patches a side, or a sequence of 65536 tokens.
LONGEST = 256


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of a plan's table key gave: for good, since captured CUDA graphs hold its addresses."""

    @cache
    @wraps(make)
    def made(*args):
        with torch.inference_mode(False), torch.no_grad():
            return make(*args)

    return made


class Plan(NamedTuple):
    """How the signals of one size are transformed; lengths of tiles are powers of two from 16 on.

    Attributes:
        size: (H, W) or (L,).
        tile_h: H of a tile, index a.
        tile_w: W of a tile, index b.
        frequencies_h: Along a, padded.
        frequencies_w: Along b, padded.
        circular: Whether displacements are taken modulo the size.
    """

    size: tuple[int, ...]
    tile_h: int
    tile_w: int
    frequencies_h: int
    frequencies_w: int
    circular: bool

    @property
    def rank(self) -> int:
        """Number of axes of the signals."""
        return len(self.size)

    @property
    def parts(self) -> int:
        """Real numbers of a spectrum per frequency of H and of W."""
        return 2 * self.rank

    @property
    def table_key(self) -> "Plan":
        """What tables depend on: sizes that share a tile share them, unless circular."""
        return self if self.circular else self._replace(size=(0,) * self.rank)

    @property
    def periods(self) -> tuple[int, int]:
        """Period of the convolution along H (of a sequence, of the whole) and W."""
        if self.rank == 1:
            return 2 * self.tile_h * self.tile_w, 2 * self.tile_w
        return (self.size[0], self.size[1]) if self.circular else (2 * self.tile_h, 2 * self.tile_w)


def make_plan(size: Sequence[int], circular: bool) -> Plan:
    """Choose the tiles of signals of a size.

    Raises:
        ValueError: The size is beyond what two axes of `LONGEST` hold.
    """
    if len(size) == 1:
        tile_h = _tile(2 ** math.ceil(math.log2(size[0]) / 2))
        tile_w = _tile(-(-size[0] // tile_h))
        plan = Plan(tuple(size), tile_h, tile_w, tile_h, tile_w, False)
    else:
        tile_h, tile_w = _tile(size[0]), _tile(size[1])
        of_h, of_w = (_tile(size[0] // 2 + 1), _tile(size[1] // 2 + 1)) if circular else (tile_h, tile_w)
        plan = Plan(tuple(size), tile_h, tile_w, of_h, of_w, circular)
    if max(plan.tile_h, plan.tile_w) > LONGEST:
        most = LONGEST**2 if len(size) == 1 else LONGEST
        raise ValueError(f"at most {most} tokens on each axis, got {tuple(size)}")
    return plan


def _tile(length: int) -> int:
    return max(16, 1 << (length - 1).bit_length())


class Tables(NamedTuple):
    """Cosines and sines, float64 on the CPU; waves_w and columns of padding are zero."""

    wave_w: Tensor  # (2, W, frequencies_w)
    wave_h: Tensor  # (2, frequencies_h, H)
    twiddle: Tensor | None  # (2, H, frequencies_w), of a sequence


def tables(plan: Plan) -> Tables:
    """The tables of a plan."""
    period_h, period_w = plan.periods
    wave_w = _waves(_range(plan.tile_w), _frequencies_w(plan), period_w)
    if plan.rank == 2:
        return Tables(wave_w, _waves(_frequencies_h(plan), _range(plan.tile_h), period_h), None)
    wave_h = _waves(_range(plan.tile_h), _range(plan.tile_h), plan.tile_h)
    return Tables(wave_w, wave_h, _waves(_range(plan.tile_h), _frequencies_w(plan), period_h))


def _range(*limits: int) -> Tensor:
    # On the CPU whatever the default device is
    return torch.arange(*limits, dtype=torch.float64, device="cpu")


def _frequencies_w(plan: Plan) -> Tensor:
    return _frequencies(plan.frequencies_w, plan.size[-1] if plan.circular else None)


def _frequencies_h(plan: Plan) -> Tensor:
    return _frequencies(plan.frequencies_h, plan.size[0] if plan.circular else None)


def _frequencies(count: int, circular_size: int | None) -> Tensor:
    """In periods of the transform, float64; NaN for padding."""
    frequency = _range(count)
    if circular_size is None:
        return frequency + 0.5
    return torch.where(frequency <= circular_size // 2, frequency, torch.nan)


def _waves(index: Tensor, other: Tensor, period: int) -> Tensor:
    """(2, len(index), len(other)) of float64: cosines and sines of 2 pi times their products over the period."""
    # Products modulo the period first: large angles would lose digits
    angle = torch.outer(index, other).remainder(period) * (2 * math.pi / period)
    return torch.stack([angle.cos(), angle.sin()]).nan_to_num(0.0)


@made_once
def _weights(plan: Plan, device: torch.device) -> Tensor:
    """Of the inverse transform, (frequencies_h, frequencies_w), float32: zero for padding."""
    weights = []
    for frequencies, size in zip((_frequencies_h(plan), _frequencies_w(plan)), plan.periods, strict=True):
        # Frequencies that are their own conjugate count once, the others twice
        single = plan.circular & ((frequencies == 0) | (2 * frequencies == size))
        weights.append((1 - 0.5 * single.double()).masked_fill(frequencies.isnan(), 0))
    return (torch.outer(*weights) * 2 / math.prod(plan.periods)).float().to(device)


def _kernel_tables(plan: Plan, reach: "Reach", device: torch.device) -> tuple[Tensor, Tensor]:
    """For the taps of an image's kernel, float32: (2 frequencies_h, Kh) and (Kw, 2 frequencies_w)."""
    waves_h, waves_w = _displacement_tables(plan.table_key, device)
    if plan.circular:
        index_h, index_w = (
            torch.arange(first, first + taps, device=device).remainder(size)
            for first, taps, size in zip(reach.first, reach.taps, plan.size, strict=True)
        )
        return waves_h[:, index_h], waves_w[index_w]
    first_h, first_w = reach.first[0] + plan.tile_h - 1, reach.first[1] + plan.tile_w - 1
    return waves_h[:, first_h : first_h + reach.taps[0]], waves_w[first_w : first_w + reach.taps[1]]


@made_once
def _displacement_tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """For displacements from 1 - tile to tile - 1, or from 0 to size - 1 if circular."""
    if plan.circular:
        wave_h, wave_w = (_range(size) for size in plan.size)
    else:
        wave_h, wave_w = _range(1 - plan.tile_h, plan.tile_h), _range(1 - plan.tile_w, plan.tile_w)
    waves_h = _waves(_frequencies_h(plan), wave_h, plan.periods[0]).flatten(0, 1)
    waves_w = _waves(wave_w, _frequencies_w(plan), plan.periods[1]).movedim(0, 1).flatten(1)
    return waves_h.float().to(device), waves_w.float().to(device)


def make_kernel_tables(plan: Plan, device: torch.device) -> None:
    """Make what `spectrum` needs, before a call that must not make anything."""
    if plan.rank == 1:
        _sequence_tables(plan.table_key, device)
    else:
        _displacement_tables(plan.table_key, device)
        _weights(plan.table_key, device)


class Reach(NamedTuple):
    """The taps of a kernel that reach a signal, per axis."""

    start: tuple[int, ...]
    taps: tuple[int, ...]
    first: tuple[int, ...]  # displacement of the tap at start

    def of(self, kernel: Tensor) -> Tensor:
        """A view of those taps."""
        rank = len(self.start)
        for axis, start, taps in zip(range(-rank, 0), self.start, self.taps, strict=True):
            kernel = kernel.narrow(axis, start, taps)
        return kernel


def reach_of(plan: Plan, kernel_size: Sequence[int], centre: Sequence[int]) -> Reach:
    """Which taps reach: all if circular, else those of displacements below the signal's size."""
    if plan.circular:
        return Reach((0,) * plan.rank, tuple(kernel_size), tuple(-middle for middle in centre))
    start = tuple(max(0, middle - n + 1) for middle, n in zip(centre, plan.size, strict=True))
    stop = tuple(min(k, middle + n) for k, middle, n in zip(kernel_size, centre, plan.size, strict=True))
    taps = tuple(end - begin for begin, end in zip(start, stop, strict=True))
    return Reach(start, taps, tuple(begin - middle for begin, middle in zip(start, centre, strict=True)))


def spectrum(kernel: Tensor, skip: Tensor | None, plan: Plan, reach: Reach) -> Tensor:
    r"""Spectrum of a kernel, with its skip and the weights of the inverse transform.

    Args:
        kernel: (..., C, *K), floating point.
        skip: (C,) or None.
        plan: Of the signals.
        reach: Of the kernel.

    Returns:
        (..., C, parts, frequencies_h, frequencies_w), float32: real and imaginary part at $(\theta_f, \theta_g)$
        and, of an image, at $(\theta_f, -\theta_g)$.
    """
    taps = reach.of(kernel).float()
    if plan.rank == 2:
        waves_h, waves_w = _kernel_tables(plan, reach, kernel.device)
        cosine, sine = (waves_h @ (taps @ waves_w)).unflatten(-2, (2, -1)).unbind(-3)
        cc, cs = cosine.chunk(2, -1)
        sc, ss = sine.chunk(2, -1)
        parts = torch.stack([cc - ss, -(sc + cs), cc + ss, cs - sc], dim=-3)
        parts[..., ::2, :, :] += 0 if skip is None else skip.float()[:, None, None, None]
        return parts.mul_(_weights(plan.table_key, kernel.device))
    wave_w, wave_h, twiddle = _sequence_tables(plan.table_key, kernel.device)
    waves_h = _lay_periodically(taps, plan, reach.first[0]).unflatten(-1, (2 * plan.tile_w, plan.tile_h)).mT
    cosine, sine = (waves_h @ wave_w).chunk(2, -1)
    real = cosine * twiddle[0] - sine * twiddle[1]
    imag = -cosine * twiddle[1] - sine * twiddle[0]
    parts = torch.stack([wave_h[0] @ real + wave_h[1] @ imag, wave_h[0] @ imag - wave_h[1] @ real], dim=-3)
    parts[..., 0, :, :] += 0 if skip is None else skip.float()[:, None, None]
    return parts.mul_(2 / plan.periods[0])


def spectrum_gradients(
    grad: Tensor, kernel: Tensor, skip: Tensor | None, plan: Plan, reach: Reach
) -> tuple[Tensor, Tensor | None]:
    """Gradients of kernel and skip (None for none) from that of `spectrum`; `grad` is overwritten."""
    if plan.rank == 2:
        grad *= _weights(plan.table_key, kernel.device)
        plus_real, plus_imag, minus_real, minus_imag = grad.unbind(-3)
        cosine = torch.cat([plus_real + minus_real, minus_imag - plus_imag], -1)
        sine = torch.cat([-(plus_imag + minus_imag), minus_real - plus_real], -1)
        waves_h, waves_w = _kernel_tables(plan, reach, kernel.device)
        dtaps = waves_h.T @ torch.cat([cosine, sine], -2) @ waves_w.T
        dskip = grad[..., ::2, :, :].sum((-3, -2, -1))
    else:
        grad *= 2 / plan.periods[0]
        wave_w, wave_h, twiddle = _sequence_tables(plan.table_key, kernel.device)
        dreal, dimag = grad.unbind(-3)
        real = wave_h[0].T @ dreal - wave_h[1].T @ dimag
        imag = wave_h[1].T @ dreal + wave_h[0].T @ dimag
        cosine = real * twiddle[0] - imag * twiddle[1]
        sine = -real * twiddle[1] - imag * twiddle[0]
        periodic = (torch.cat([cosine, sine], -1) @ wave_w.T).mT.flatten(-2)
        dtaps = _taken_from_period(periodic, reach.taps[0], reach.first[0])
        dskip = dreal.sum((-2, -1))
    dkernel = torch.zeros(kernel.shape, dtype=kernel.dtype, device=kernel.device)
    reach.of(dkernel).copy_(dtaps)
    if skip is None:
        return dkernel, None
    return dkernel, dskip.sum_to_size(skip.shape).to(skip.dtype)


@made_once
def _sequence_tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Waves along W of a whole period (2 W, 2 frequencies_w), along H, and twiddle factors, float32."""
    wave_w = _waves(_range(2 * plan.tile_w), _frequencies_w(plan), plan.periods[1]).movedim(0, 1).flatten(1)
    _, wave_h, _ = tables(plan)
    twiddle = _waves(_range(plan.tile_h), _frequencies_w(plan), plan.periods[0])
    return wave_w.float().to(device), wave_h.float().to(device), twiddle.float().to(device)


def _lay_periodically(taps: Tensor, plan: Plan, first: int) -> Tensor:
    """Displacement d of a sequence's kernel at d, or at d + T with the other sign: half-frequencies turn it back."""
    index = first + torch.arange(taps.shape[-1], device=taps.device)
    periodic = taps.new_zeros(*taps.shape[:-1], plan.periods[0])
    periodic[..., index.remainder(plan.periods[0])] = torch.where(index < 0, -taps, taps)
    return periodic


def _taken_from_period(periodic: Tensor, taps: int, first: int) -> Tensor:
    """Adjoint of `_lay_periodically`."""
    index = first + torch.arange(taps, device=periodic.device)
    values = periodic[..., index.remainder(periodic.shape[-1])]
    return torch.where(index < 0, -values, values)
