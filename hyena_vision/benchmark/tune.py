"""Find out on this GPU where the fused kernels are right and at least as fast as `fft`, and keep it for `backend=None`.

For each size of tokens that the models have, the long convolution and the short filter are compared with float64, with
all gradients, and repeated, bit by bit; then whole mixers, between their projections, are timed in turn with `fft`:
in training, in inference, and in inference with kept kernels (a reparameterized model).
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from hyena_vision.benchmark.program import DTYPES
from hyena_vision.benchmark.timing import FAILED, OK, OUT_OF_MEMORY, attempt, release_memory
from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.ops import (
    available_backends,
    gated_short_filter,
    long_conv1d,
    long_conv2d,
    prepare_kernel1d,
    prepare_kernel2d,
)
from hyena_vision.ops.table import (
    USES,
    BackendTable,
    Row,
    cache_path,
    card_of,
    current_versions,
    read_table,
    write_table,
)
from hyena_vision.ops.triton.half_frequency import LONGEST
from hyena_vision.testing import TOLERANCES, relative_errors
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.meta import meta_device

IMG_SIZES = (224, 384, 512, 768, 1024, 2048)
_MAX_BATCH, _TRUTH_CHANNELS = 64, 32  # channels whose float64 truth is computed at once
_READING_MS, _COMPILE_SECONDS = 20, 200
UNFINISHED = "it was not finished"


@dataclass(frozen=True)
class Shape:
    """What is measured at once.

    Attributes:
        size: (L,) or (H, W).
        dtype: Key of `DTYPES`.
        dim: Channels.
        tokens: Of a batch, about.
    """

    size: tuple[int, ...]
    dtype: str
    dim: int = 384
    tokens: int = 2**15

    @property
    def batch(self) -> int:
        """Images of a call."""
        return max(1, min(_MAX_BATCH, self.tokens // math.prod(self.size)))

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.size))} {self.dtype}"


def add_command(commands: Any) -> None:
    """Add the sub-command `tune`."""
    parser = commands.add_parser("tune", help="choose what backend=None runs on this GPU", description=__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="models whose sizes count (default: all of ours)")
    parser.add_argument("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="pixels")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16", "float16"], help="of the signals")
    parser.add_argument("--device", default="cuda", help="the GPU")
    parser.add_argument("--dim", type=positive_int, default=384, metavar="N", help="channels that are measured")
    parser.add_argument("--tokens", type=positive_int, default=2**15, metavar="N", help="of a batch, about")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="readings of each backend")
    parser.add_argument("--repeats", type=positive_int, default=20, metavar="N", help="calls that must be equal bits")
    parser.add_argument("--time-limit", type=float, default=300, metavar="SECONDS", help="begin no size after it")
    parser.add_argument(
        "--output", metavar="FILE", help="table to write (default: in the user's cache, where it counts)"
    )
    parser.add_argument("--go-on", action="store_true", help="leave out what the table has already")
    parser.add_argument("--workers", type=positive_int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--compile-only", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> BackendTable:
    """Measure, write the table after each size, and print it.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The table.

    Raises:
        UserError: There is no GPU or no Triton to measure, no place for the table, a kernel broke the GPU's context, or
            time was up before all was measured; what was measured is in the table.
    """
    missing = available_backends(reasons=True)["triton"]
    card = None if missing else card_of(args.device)
    if card is None:
        raise UserError(f"tune measures the fused kernels on an NVIDIA GPU: {missing or f'{args.device} is none'}")
    if torch.device(args.device).type == "cpu":
        torch.set_num_threads(1)  # of the interpreter's thousands of small calls, threads would wait for each other
    path = Path(args.output) if args.output else cache_path(card)
    if path is None:
        raise UserError("there is no cache folder for the table: set HYENA_VISION_CACHE, or give --output FILE")
    try:
        rows = {(row.size, row.dtype, row.use): row for row in read_table(path, card).rows}
    except (OSError, ValueError):
        rows = {}

    def keep(found: Sequence[Row]) -> None:
        rows.update({(row.size, row.dtype, row.use): row for row in found})
        ordered = sorted(rows.values(), key=lambda row: (row.dtype, len(row.size), row.size, USES.index(row.use)))
        try:
            write_table(BackendTable(card, tuple(ordered), tuple(current_versions().items())), path)
        except OSError as error:
            raise UserError(f"the table cannot be written to {path}: {error.strerror}; --output FILE") from error

    def is_done(shape: Shape) -> bool:
        found = [rows.get((shape.size, shape.dtype, use)) for use in USES]
        return all(row is not None and not row.wrong.startswith((FAILED, OUT_OF_MEMORY)) for row in found)

    sizes, start = sizes_of(args.models, args.img_sizes), time.monotonic()
    shapes = [Shape(size, dtype, args.dim, args.tokens) for size, dtype in product(sizes, args.dtype)]
    shapes = [shape for shape in shapes if not (args.go_on and is_done(shape))]
    if args.compile_only is not None:
        _compile(shapes[args.compile_only :: args.workers], args.device)
        return BackendTable(card)
    compilers = _start_compilers(args) if len(shapes) > 1 else []
    left = []
    for index, shape in enumerate(shapes):
        elapsed = time.monotonic() - start
        if elapsed > args.time_limit:
            left = shapes[index:]
            break
        before = {key: rows[key] for use in USES if (key := (shape.size, shape.dtype, use)) in rows}
        keep([Row(shape.size, shape.dtype, use, None, None, UNFINISHED) for use in USES])  # if it never comes back
        try:
            found = measure(shape, args.device, args.rounds, args.repeats, compilers)
        except KeyboardInterrupt:
            for use in USES:
                del rows[shape.size, shape.dtype, use]
            keep(list(before.values()))  # it is no fault of a kernel
            raise
        keep(found)
        print(f"[{index + 1}/{len(shapes)}, {elapsed:.0f} s] {shape}: {_said(found)}", file=sys.stderr, flush=True)
        _check_context(shape, args.device)
    for process in compilers:
        process.kill()  # where nothing was timed
    if not sizes:
        raise UserError("none of these models has tokens that the fused kernels take")
    table = BackendTable(card, tuple(rows.values()))
    if rows:
        table = read_table(path, card)
        print(table)
        taken = sum(row.backend == "triton" for row in table.rows)
        print(f"triton is taken for {taken} of {len(table.rows)}; processes that start from now on follow it")
    if left:
        raise UserError(f"time is up: fft stays at {', '.join(map(str, left))}; --go-on measures them")
    return table


def _start_compilers(args: argparse.Namespace) -> list[subprocess.Popen]:
    """Processes that compile the kernels of all shapes into Triton's cache: alone, that takes most of the time."""
    if torch.device(args.device).type != "cuda":
        return []
    free = torch.cuda.mem_get_info(args.device)[0] // (4 * 2**30)
    count = min(8, (os.cpu_count() or 1) // 2, free - 1)
    command = [sys.executable, "-m", "hyena_vision.benchmark", "tune", "--img-sizes", *map(str, args.img_sizes)]
    command += ["--models", *args.models] if args.models else []
    command += ["--dtype", *args.dtype, "--device", args.device, "--dim", str(args.dim), "--tokens", str(args.tokens)]
    command += ["--output", os.devnull, "--workers", str(count), "--compile-only"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [subprocess.Popen([*command, str(index)], **quiet) for index in range(count)]


def _compile(shapes: Sequence[Shape], device: str) -> None:
    """Launch all kernels of some shapes; what fails here fails again where it is measured."""
    for shape in shapes:
        for case in _cases(shape, device):
            attempt(partial(case.values, case.inputs, case.dy, "triton"))


def sizes_of(models: Sequence[str] | None, img_sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Sizes of the long convolutions of models, as far as the fused kernels take them; what most models have first.

    Args:
        models: Names of timm's registry, None for all of this package.
        img_sizes: Sides of the images in pixels.

    Raises:
        UserError: A model is unknown or has no Hyena mixer.
    """
    sizes: Counter[tuple[int, ...]] = Counter()
    for name in models or timm.list_models(module="hyena_vit") + timm.list_models(module="hyena_former"):
        if not timm.is_model(name):
            raise UserError(f"timm knows no model {name!r}")
        with meta_device():
            model = timm.create_model(name)
        stages = {(info["module"], info["reduction"]) for info in getattr(model, "feature_info", None) or []}
        found = {
            (mixer.filter.rank, reduction)
            for stage, reduction in stages
            for mixer in model.get_submodule(stage).modules()
            if isinstance(mixer, (Hyena1d, Hyena2d))
        }
        if not found:
            raise UserError(f"{name} has no Hyena mixer")
        for (rank, reduction), img_size in product(found, img_sizes):
            grid = max(1, img_size // reduction)
            sizes[(grid, grid) if rank == 2 else (grid * grid,)] += 1
    taken = [size for size in sizes if math.prod(size) <= LONGEST**2]
    return sorted(taken, key=lambda size: (-sizes[size], math.prod(size), len(size)))


def measure(
    shape: Shape, device: str, rounds: int, repeats: int, compilers: Sequence[subprocess.Popen] = ()
) -> list[Row]:
    """Compare and time one shape.

    Args:
        shape: What.
        device: Where.
        rounds: Readings of each backend.
        repeats: Calls that must give equal bits.
        compilers: Processes that use the GPU as well: nothing is timed before they end.

    Returns:
        A row for each of `USES`. An error of a kernel is what is wrong in them.
    """
    wrong, outcome = attempt(partial(find_wrong, shape, device, repeats))
    times = None
    if outcome == OK and not wrong:
        deadline = time.monotonic() + _COMPILE_SECONDS
        for process in compilers:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
        times, outcome = attempt(partial(time_uses, shape, device, rounds))
    wrong = outcome if outcome != OK else wrong
    release_memory()
    if wrong:
        return [Row(shape.size, shape.dtype, use, None, None, wrong) for use in USES]
    return [Row(shape.size, shape.dtype, use, times[use, "triton"], times[use, "fft"]) for use in USES]


def find_wrong(shape: Shape, device: str, repeats: int) -> str:
    """Compare the fused kernels with float64 and with themselves.

    Args:
        shape: What.
        device: Where.
        repeats: Calls that must give equal bits.

    Returns:
        What is wrong, with figures; empty if all is right.
    """
    dtype = DTYPES[shape.dtype]
    for case in _cases(shape, device):
        values = case.values(case.inputs, case.dy, "triton")
        for start in range(0, shape.dim, _TRUTH_CHANNELS):
            exact = [_channels(*pair, case.signals, start) for pair in zip(case.inputs, case.axes[1:], strict=True)]
            dy = _channels(case.dy, case.axes[0], 1, start).double()
            truths = case.values([None if t is None else t.double() for t in exact], dy, case.truth)
            counts = [1, *[case.signals] * len(case.inputs)]
            for name, value, truth, axis, count in zip(case.names, values, truths, case.axes, counts, strict=True):
                if truth is None:
                    continue
                errors, (rms, worst) = relative_errors(_channels(value, axis, count, start), truth), TOLERANCES[dtype]
                # Of millions of products the largest is rounded by more than that of a test's thousand
                bounds = rms, 5 * worst
                if not all(error <= bound for error, bound in zip(errors, bounds, strict=True)):
                    return (
                        f"{case.what}, {name}: relative RMS {errors[0]:.1e} (at most {bounds[0]:.0e}), "
                        f"worst / RMS {errors[1]:.1e} (at most {bounds[1]:.0e})"
                    )
        if case.prepared is not None:
            errors = relative_errors(case.prepared(), values[0].double())
            if not errors[0] <= TOLERANCES[dtype][0]:
                return f"{case.what}, y with a prepared kernel: relative RMS {errors[0]:.1e} to y without"
        for repeat in range(1, repeats):
            again = case.values(case.inputs, case.dy, "triton")
            if not all(a is b is None or torch.equal(a, b) for a, b in zip(values, again, strict=True)):
                return f"{case.what}: call {repeat + 1} gave other bits than the first"
    return ""


@dataclass(frozen=True)
class _Case:
    """One call of an operator.

    Attributes:
        what: Its name.
        function: Of the inputs and a backend.
        truth: Backend that is the truth in float64.
        names: Of the result and the gradients.
        inputs: Its tensors, None for none.
        dy: Gradient of its result.
        axes: Of the channels in the result and the inputs.
        signals: How many signals the channels of an input are of.
        prepared: The same result with a prepared kernel, None where there is none.
    """

    what: str
    function: Callable[..., Tensor]
    truth: str
    names: Sequence[str]
    inputs: Sequence[Tensor | None]
    dy: Tensor
    axes: Sequence[int]
    signals: int = 1
    prepared: Callable[[], Tensor] | None = None

    def values(self, inputs: Sequence[Tensor | None], dy: Tensor, backend: str) -> list[Tensor | None]:
        """Result and gradients, None where an input is."""
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        y = self.function(*leaves, backend)
        found = iter(torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy))
        return [y.detach(), *(None if leaf is None else next(found) for leaf in leaves)]


def _channels(t: Tensor | None, axis: int, signals: int, start: int) -> Tensor | None:
    """Some channels of each signal, from `start` on."""
    if t is None:
        return None
    t = t.unflatten(axis, (signals, -1))
    return t.narrow(axis + 1, start, min(_TRUTH_CHANNELS, t.shape[axis + 1] - start)).flatten(axis, axis + 1)


def _cases(shape: Shape, device: str) -> Iterator[_Case]:
    """Long convolutions as mixers call them, with the first gate in the short filter and without, and the filter."""
    dtype, rank, generator = DTYPES[shape.dtype], len(shape.size), torch.Generator(device).manual_seed(0)
    signal, extents = (shape.batch, shape.dim, *shape.size), [2 * n - 1 for n in shape.size]

    def draw(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, device=device, generator=generator).to(dtype)

    def signals(*means: float) -> list[Tensor]:
        return [mean + draw(*signal, dtype=dtype) / (4 if mean else 1) for mean in means]

    def convolve(x, gate, out_gate, kernel, skip, backend):
        long_conv = long_conv2d if rank == 2 else long_conv1d
        return long_conv(x, kernel, skip, gate=gate, out_gate=out_gate, backend=backend)

    def filter_tokens(tokens, weight, bias, backend):
        return gated_short_filter(tokens, weight, bias, signals=3, backend=backend)

    names, weights = ("y", "dx", "dgate", "dout_gate", "dkernel", "dskip"), [draw(shape.dim, *extents), draw(shape.dim)]
    weights[0] /= math.prod(extents) ** 0.5
    (x, out_gate), dy, axes = signals(0, 1), draw(*signal, dtype=dtype), (1, 1, 1, 1, 0, 0)
    prepare = prepare_kernel2d if rank == 2 else prepare_kernel1d

    def prepared() -> Tensor:
        with torch.no_grad():
            return convolve(x, None, out_gate, prepare(x, *weights, backend="triton"), None, "triton")

    inputs = [x, None, out_gate, *weights]
    yield _Case("long convolution", convolve, "fft", names, inputs, dy, axes, prepared=prepared)
    # Signals as norms between the filter and the convolution leave them
    last = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in signals(0, 1, 1)]
    yield _Case("long convolution, channels last", convolve, "fft", names, [*last, *weights], dy, axes)
    width, taps, names = 3 * shape.dim, (3,) * rank, ("y", "dtokens", "dweight", "dbias")
    inputs = [draw(shape.batch, *shape.size, width, dtype=dtype), draw(width, 1, *taps), draw(width)]
    dy = draw(shape.batch, 2, *signal[1:], dtype=dtype)
    yield _Case("short filter", filter_tokens, "torch", names, inputs, dy, (2, rank + 1, 0, 0), signals=3)


def time_uses(shape: Shape, device: str, rounds: int) -> dict[tuple[str, str], float]:
    """Time mixers between their projections, the two backends in turn.

    Args:
        shape: What.
        device: Where.
        rounds: Readings of each backend.

    Returns:
        Median milliseconds of a call by use and backend.
    """
    dtype, rank = DTYPES[shape.dtype], len(shape.size)
    grid = shape.size if rank == 2 else (1, *shape.size)
    signals = torch.randn(shape.batch, *grid, 3 * shape.dim, device=device).to(dtype)
    dy, layer = torch.randn_like(signals[..., : shape.dim]), Hyena2d if rank == 2 else Hyena1d

    def make_call(use: str, backend: str) -> Callable[[], object]:
        mixer, tokens = layer(shape.dim, backend=backend, device=device), signals.detach()
        if use == "training":
            tokens.requires_grad_()
            leaves = [tokens, *(p for name, p in mixer.named_parameters() if not name.startswith(("qkv", "proj")))]
        else:
            mixer.eval()
        if use == "prepared":
            mixer.reparameterize()

        def call() -> object:
            with torch.autocast(torch.device(device).type, dtype) if dtype != torch.float32 else nullcontext():
                if use != "training":
                    with torch.no_grad():
                        return mixer.mix(tokens)
                y = mixer.mix(tokens)
            return torch.autograd.grad(y, leaves, dy)

        return call

    times = {}
    for use in USES:
        calls = {backend: make_call(use, backend) for backend in ("fft", "triton")}
        readings: dict[str, list[float]] = {backend: [] for backend in calls}
        for _ in range(rounds):
            for backend, call in calls.items():
                readings[backend].append(_milliseconds(call, device))
        times |= {(use, backend): statistics.median(found) for backend, found in readings.items()}
    return times


def _milliseconds(call: Callable[[], object], device: str) -> float:
    """A reading; on a GPU with its cache cleared before each call."""
    if torch.device(device).type != "cuda":
        return 1000 * timeit.timeit(call, number=1)
    from triton.testing import do_bench

    with torch.cuda.device(device):
        return do_bench(call, warmup=_READING_MS // 4, rep=_READING_MS, return_mode="median")


def _said(rows: Sequence[Row]) -> str:
    if rows[0].wrong:
        return f"not used: {rows[0].wrong}"
    return "right; fft / triton " + ", ".join(f"{row.use} {row.fft_ms / row.triton_ms:.2f}" for row in rows)


def _check_context(shape: Shape, device: str) -> None:
    """An illegal access leaves a process without a GPU: what follows would be errors of nobody's."""
    try:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise UserError(f"a kernel broke the GPU's context at {shape}, --go-on measures the rest: {error}") from error
