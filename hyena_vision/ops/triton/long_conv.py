"""The `triton` backend: long convolutions with their gates in fused kernels, for NVIDIA's GPUs from sm_80 on.

Signals of up to 128 x 128 tokens (16384 of a sequence; in float32 and float16 64 x 64, and 4096) are convolved in one
kernel, which reads x and the gates once and writes y once; larger ones in three, with transforms along W between them
in float32. Products have float16 operands: one product for bfloat16 input, three (numbers and what float16 leaves of
them) for float32 and float16; sums are float32. The backward pass keeps what came in and nothing else. There are no
atomic sums: equal calls give equal bits.
docs/notes/gpu.md has the formulas, and what the compiler makes of them.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hyena_vision.ops.tensors import Gradients, Taps, empty_gated_result, empty_result, full_precision
from hyena_vision.ops.triton import long_conv_kernels as kernels
from hyena_vision.ops.triton import long_conv_parts_kernels as parts_kernels
from hyena_vision.ops.triton.half_frequency import (
    LONGEST,
    Plan,
    Reach,
    made_once,
    make_kernel_tables,
    make_plan,
    reach_of,
    spectrum,
    spectrum_gradients,
    tables,
)
from hyena_vision.ops.watchers import WATCHED, is_watched

# Longest axis of a tile that one program convolves, in bfloat16 twice as long.
_WHOLE = 64
# Warps that a GPU should have to choose from: a few times those that the largest one runs at once.
_WARPS = 8192


class Device(NamedTuple):
    """What decides about kernels, as plain numbers: a compiler that traces a call cannot ask a device."""

    capability: int  # 90 of sm_90
    shared_memory: int  # bytes that one program can have


def _devices() -> list[Device]:
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    memory = [p.shared_memory_per_block_optin for p in found]  # type: ignore[attr-defined]  # not in torch's stubs
    return [Device(10 * p.major + p.minor, bytes_) for p, bytes_ in zip(found, memory, strict=True)]


_DEVICES = _devices()
# Of shared memory, for whole tiles of more than 64 x 64
LARGE_SHARED_MEMORY = 152 * 1024


# Found out once: torch 2.11 cannot trace a question about a kernel's type
_INTERPRETED = not isinstance(kernels._long_conv_fwd_kernel, triton.JITFunction)


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, one operation after the other (TRITON_INTERPRET=1)."""
    return _INTERPRETED


def is_exact(x: Tensor, gate: Tensor | None) -> bool:
    """Whether one float16 product is not enough: for all input but bfloat16."""
    return (x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype)) != torch.bfloat16


def blocks_of(name: str, plan: Plan, exact: bool) -> dict[str, int]:
    """How a kernel is launched: what a program works on at a time, and warps.

    As much as registers hold, by what the compiler reports for sm_80 and sm_90. Programs of whole tiles have 16
    frequencies of W per warp and go through the frequencies of H in chunks of `CHUNK`, whose cosines and sines are one
    operand if `STACKED`: products of 64 rows and more read it from shared memory on Hopper. Programs of other tiles
    have `BLOCK` frequencies of W. Loops are not pipelined (one stage): what they load, the tables, is in the caches.
    """
    if name in ("whole", "spectrum"):
        chunk = 32 if name == "whole" and not exact and plan.tile_h <= 32 else 16
        blocks = {"CHUNK": chunk, "STACKED": plan.frequencies_w >= 64, "num_warps": plan.frequencies_w // 16}
        if name == "whole" and not exact and plan.rank == 2 and plan.frequencies_w == plan.tile_h == 64:
            blocks["maxnreg"] = 168  # three programs for a multiprocessor
    elif name == "spectrum_w":
        blocks = {"BLOCK_H": 64, "BLOCK": 32, "CHUNK": 16, "num_warps": 4}
    elif name == "convolve_h":
        blocks = {"BLOCK_H": 64, "BLOCK": 16, "CHUNK": 16 if exact else 32, "num_warps": 8}
    else:
        blocks = {"BLOCK_H": 64, "BLOCK": 32, "BLOCK_W": 64, "num_warps": 4}
    most = {
        "BLOCK_H": plan.tile_h,
        "BLOCK_W": plan.tile_w,
        "BLOCK": plan.frequencies_w,
        "CHUNK": plan.frequencies_h,
    }
    return {key: min(size, most.get(key, size)) for key, size in blocks.items()} | {"num_stages": 1}


class _Spectrum(NamedTuple):
    """Of a kernel, for signals of one size."""

    plan: Plan
    exact: bool
    values: Tensor  # ([B,] C, parts, frequencies_h, frequencies_w), divided by scales
    scales: Tensor  # ([B,] C)

    @property
    def constants(self) -> dict:
        return constants_of(self.plan, self.exact)


def _scaled_spectrum(kernel: Tensor, skip: Tensor | None, plan: Plan, reach: Reach, exact: bool) -> _Spectrum:
    with full_precision(kernel.device.type):
        values = spectrum(kernel, skip, plan, reach)
    # At most 1 / n for n x n tokens. With signals below 2, products are below 4 n and, by Parseval's equation,
    # transforms along W of a result below 4 sqrt(2) n^1.5: both are in the range of float16
    scales = values.abs().amax((-3, -2, -1)).clamp_min(1e-30) * (plan.tile_h * plan.tile_w) ** 0.5
    values /= scales[..., None, None, None]
    return _Spectrum(plan, exact, values if exact else values.half(), scales)


def constants_of(plan: Plan, exact: bool) -> dict:
    """What all kernels are compiled for."""
    tile = (plan.tile_h, plan.tile_w, plan.frequencies_h, plan.frequencies_w)
    return {"TILE": tile, "RANK": plan.rank, "EXACT": exact}


@made_once
def _tables(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Waves of W and H as float16 numbers and the rests they leave; twiddle factors in float32 and float16."""
    *waves, twiddle = tables(plan)
    numbers = [wave.half() for wave in waves]
    rests = [((wave - n.double()) * kernels.REST.value).half() for wave, n in zip(waves, numbers, strict=True)]
    wave_w, wave_h = (torch.stack(pair).to(device) for pair in zip(numbers, rests, strict=True))
    if twiddle is None:
        return wave_w, wave_h, None, None
    return wave_w, wave_h, twiddle.to(device, torch.float32), twiddle.to(device, torch.float16)


def _signal(tensor: Tensor | None, plan: Plan) -> tuple[Tensor, tuple[int, ...]] | None:
    """As kernels take it: with its strides of sample, channel, H and W."""
    if tensor is None:
        return None
    strides = tensor.stride()
    return tensor, strides if plan.rank == 2 else (*strides, plan.tile_h * strides[-1])


def _sizes(plan: Plan, x: Tensor) -> tuple[tuple[int, int], int, int]:
    """Size, batch and channels."""
    return (plan.size[0], plan.size[-1]), x.shape[0], x.shape[1]


def is_whole(plan: Plan, exact: bool, device: torch.device) -> bool:
    """Whether one program convolves a whole tile: as far as registers and shared memory go."""
    large = not exact and (device.type != "cuda" or _DEVICES[device.index].shared_memory >= LARGE_SHARED_MEMORY)
    return max(plan.tile_h, plan.tile_w) <= (2 if large else 1) * _WHOLE


def shared_memory(size: Sequence[int], exact: bool) -> int:
    """Bytes that programs need at most for signals of a size, as compiled ahead of time for sm_80 to sm_120.

    Those of whole tiles of more than 64 x 64 need `LARGE_SHARED_MEMORY`; without it such tiles are convolved in parts.
    """
    side = size[0] ** 0.5 if len(size) == 1 else max(size)
    return 96 * 1024 if exact and 32 < side <= 64 else 48 * 1024


def _samples(batch: int, programs: int, warps: int) -> int:
    """For each program, as long as there are enough of them; of one sample there are `programs` of `warps` warps."""
    return -(-batch // min(batch, -(-_WARPS // (programs * warps))))


def _launch_whole(program: Any, spectrum: _Spectrum, x: Tensor, *signals: Tensor | None) -> None:
    plan, (batch, channels) = spectrum.plan, x.shape[:2]
    per_sample, blocks = spectrum.scales.ndim == 2, blocks_of("whole", spectrum.plan, spectrum.exact)
    # Of several samples what they share is kept, as far as registers go
    keep = blocks["CHUNK"] == plan.frequencies_h
    samples = _samples(batch, channels, blocks["num_warps"]) if keep and not per_sample else 1
    program[(-(-batch // samples) * channels,)](
        *(_signal(t, plan) for t in (x, *signals)),
        _tables(plan.table_key, x.device),
        spectrum.values,
        spectrum.scales,
        *_sizes(plan, x),
        samples,
        PER_SAMPLE=per_sample,
        KEEP=keep,
        **spectrum.constants,
        **blocks,
    )


def _transform_w(x: Tensor, gate: Tensor | None, plan: Plan, exact: bool) -> Tensor:
    """Transforms along W of gate * x, (2, B * C, H, frequencies_w), float32."""
    images, blocks = x.shape[0] * x.shape[1], blocks_of("transform_w", plan, exact)
    workspace = torch.empty((2, images, plan.tile_h, plan.frequencies_w), dtype=torch.float32, device=x.device)
    parts_kernels._transform_w_kernel[
        (images, plan.tile_h // blocks["BLOCK_H"], plan.frequencies_w // blocks["BLOCK"])
    ](
        _signal(x, plan),
        _signal(gate, plan),
        workspace,
        _tables(plan.table_key, x.device),
        *_sizes(plan, x),
        **constants_of(plan, exact),
        **blocks,
    )
    return workspace


def _convolve_h(workspace: Tensor, x: Tensor, spectrum: _Spectrum, conjugate: bool) -> None:
    """Convolve transforms along W of signals like x along H, in place."""
    plan, blocks = spectrum.plan, blocks_of("convolve_h", spectrum.plan, spectrum.exact)
    parts_kernels._convolve_h_kernel[(x.shape[0] * x.shape[1], plan.frequencies_w // blocks["BLOCK"])](
        workspace,
        _tables(plan.table_key, x.device),
        spectrum.values,
        spectrum.scales,
        x.shape[0],
        x.shape[1],
        PER_SAMPLE=spectrum.scales.ndim == 2,
        CONJUGATE=conjugate,
        **spectrum.constants,
        **blocks,
    )


def _transform_w_back(
    workspace: Tensor,
    spectrum: _Spectrum,
    factor: Tensor | None,
    y: Tensor,
    other_factor: Tensor | None = None,
    other_y: Tensor | None = None,
) -> None:
    """Transform back along W: times `factor` into y, and times `other_factor` into other_y if given."""
    plan, blocks = spectrum.plan, blocks_of("transform_w", spectrum.plan, spectrum.exact)
    grid = (y.shape[0] * y.shape[1], plan.tile_h // blocks["BLOCK_H"], plan.tile_w // blocks["BLOCK_W"])
    parts_kernels._transform_w_back_kernel[grid](
        workspace,
        *(_signal(t, plan) for t in (factor, y, other_factor, other_y)),
        _tables(plan.table_key, y.device),
        *_sizes(plan, y),
        **spectrum.constants,
        **blocks,
    )


def _signal_gradients(
    dy: Tensor,
    x: Tensor,
    spectrum: _Spectrum,
    gate: Tensor | None,
    out_gate: Tensor | None,
    dx: Tensor,
    dgate: Tensor | None,
    dout_gate: Tensor | None,
) -> Tensor:
    """Fills dx, dgate and dout_gate; returns the gradient of the spectrum."""
    plan, exact, per_sample = spectrum.plan, spectrum.exact, spectrum.scales.ndim == 2
    large = max(plan.tile_h, plan.tile_w) > _WHOLE
    if is_whole(plan, exact, x.device):
        if large and out_gate is not None:
            # Two convolutions of large tiles in one program would need more registers than there are
            _launch_whole(kernels._long_conv_fwd_kernel, spectrum, x, gate, dy, dout_gate)
            dout_gate = None
        _launch_whole(kernels._long_conv_bwd_kernel, spectrum, dy, x, gate, out_gate, dx, dgate, dout_gate)
    if not large:
        dspectrum = _dspectrum(
            "spectrum", x, plan, exact, per_sample, [_signal(t, plan) for t in (dy, x, gate, out_gate)]
        )
    else:
        x_w, dy_w = _transform_w(x, gate, plan, exact), _transform_w(dy, out_gate, plan, exact)
        dspectrum = _dspectrum("spectrum_w", x, plan, exact, per_sample, [x_w, dy_w])
        if not is_whole(plan, exact, x.device):
            if dout_gate is not None:
                _convolve_h(x_w, x, spectrum, conjugate=False)
                _transform_w_back(x_w, spectrum, dy, dout_gate)
            _convolve_h(dy_w, x, spectrum, conjugate=True)
            _transform_w_back(dy_w, spectrum, gate, dx, None if gate is None else x, dgate)
    return dspectrum if per_sample else dspectrum.sum(0)


def _dspectrum(name: str, x: Tensor, plan: Plan, exact: bool, per_sample: bool, inputs: list) -> Tensor:
    """Gradient of the spectrum, ([B or groups of samples,] C, parts, frequencies_h, frequencies_w)."""
    (batch, channels), blocks = x.shape[:2], blocks_of(name, plan, exact)
    programs = channels * (plan.frequencies_h // blocks["CHUNK"])
    programs *= plan.frequencies_w // blocks.get("BLOCK", plan.frequencies_w)
    samples = 1 if per_sample else _samples(batch, programs, blocks["num_warps"])
    groups = -(-batch // samples)
    shape = (groups, channels, plan.parts, plan.frequencies_h, plan.frequencies_w)
    dspectrum = torch.empty(shape, dtype=torch.float32, device=x.device)
    whole = name == "spectrum"
    (kernels._spectrum_bwd_kernel if whole else parts_kernels._spectrum_w_bwd_kernel)[(groups * programs,)](
        *inputs,
        dspectrum,
        _tables(plan.table_key, x.device),
        *(_sizes(plan, x) if whole else (batch, channels)),
        samples,
        **constants_of(plan, exact),
        **blocks,
    )
    return dspectrum


def on_device_of_x(function: Callable) -> Callable:
    """Run a function of an operator with the current device that Triton launches on.

    Raises:
        RuntimeError: A program of this version of Triton needs more than the device has.
    """

    @wraps(function)
    def run(*args):
        x = args[0]
        try:
            with torch.cuda.device_of(x):
                return function(*args)
        except triton.OutOfResources as error:
            raise RuntimeError(
                f"backend 'triton' cannot run {tuple(x.shape)} {x.dtype} on {x.device}: {error}; backend 'fft' can"
            ) from error

    return run


def make_tables(x: Tensor, circular: bool) -> None:
    """Where a compiler traces a fixed size: what it captures as a CUDA graph may not make tables that stay."""
    if all(isinstance(n, int) for n in x.shape[2:]) and (x.device.type == "cpu" or torch.cuda.is_available()):
        with unset_fake_temporarily():
            plan = make_plan(x.shape[2:], circular)
            _tables(plan.table_key, x.device)
            make_kernel_tables(plan, x.device)


def reason_not(x: Tensor, kernel: Tensor) -> str | None:
    """Why the kernels cannot run these arguments, or None."""
    if x.dtype == torch.float64:
        return "its sums are float32, and x is float64"
    most = LONGEST**2 if x.ndim == 3 else LONGEST
    if max(x.shape[2:]) > most:
        return f"it takes at most {most} tokens on each axis, and x has {tuple(x.shape[2:])}"
    if is_watched(x, kernel):
        return WATCHED
    if interpreted():
        return None
    if x.device.type != "cuda":
        return f"it is for GPUs, and x is on {x.device}"
    if torch.version.hip is not None:
        return f"it is for NVIDIA's GPUs, and {x.device} is another"
    device, needed = _DEVICES[x.device.index], shared_memory(x.shape[2:], x.dtype != torch.bfloat16)
    if device.capability < 80:
        # As compiled for sm_75: up to 22 KB spilled per thread, and 112 KB of shared memory where it has 64
        return f"its kernels do not fit GPUs before sm_80, and {x.device} is sm_{device.capability}"
    if device.shared_memory < needed:
        return f"it needs {needed} bytes of shared memory for this size, and {x.device} has {device.shared_memory}"
    return None


@on_device_of_x
def prepare(x: Tensor, kernel: Tensor, skip: Tensor | None, taps: Taps) -> tuple[Tensor, ...]:
    """Spectrum of a kernel for signals like x, and its scales; the spectrum in float16 as well where that is enough."""
    plan = make_plan(x.shape[2:], taps.circular)
    made = _scaled_spectrum(kernel, skip, plan, reach_of(plan, taps.extents, taps.centre), True)
    return (made.values, made.scales) if is_exact(x, None) else (made.values, made.scales, made.values.half())


@on_device_of_x
def convolve(x: Tensor, prepared: Sequence[Tensor], gate: Tensor | None, out_gate: Tensor | None, taps: Taps) -> Tensor:
    """The convolution with what `prepare` made."""
    exact = is_exact(x, gate)
    plan, values, scales = make_plan(x.shape[2:], taps.circular), prepared[0 if exact else 2], prepared[1]
    spectrum = _Spectrum(plan, exact, values, scales)
    y = empty_gated_result(x, gate, out_gate)
    if is_whole(plan, exact, x.device):
        _launch_whole(kernels._long_conv_fwd_kernel, spectrum, x, gate, out_gate, y)
    else:
        workspace = _transform_w(x, gate, plan, exact)
        _convolve_h(workspace, x, spectrum, conjugate=False)
        _transform_w_back(workspace, spectrum, out_gate, y)
    return y


@on_device_of_x
def gradients(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    skip: Tensor | None,
    gate: Tensor | None,
    out_gate: Tensor | None,
    taps: Taps,
) -> Gradients:
    """Gradients of x, kernel, skip, gate and out_gate, None for None."""
    plan, exact = make_plan(x.shape[2:], taps.circular), is_exact(x, gate)
    reach = reach_of(plan, taps.extents, taps.centre)
    dx = empty_result(x)
    dgate, dout_gate = (None if t is None else empty_result(t) for t in (gate, out_gate))
    of_signals = _scaled_spectrum(kernel, skip, plan, reach, exact)
    dspectrum = _signal_gradients(dy, x, of_signals, gate, out_gate, dx, dgate, dout_gate)
    with full_precision(x.device.type):
        dkernel, dskip = spectrum_gradients(dspectrum, kernel, skip, plan, reach)
    return dx, dkernel.contiguous(), dskip, dgate, dout_gate
