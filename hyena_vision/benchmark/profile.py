"""Where the time of one block goes: its kernels by time, so that the next step of optimisation is known.

The block is the first of a vision transformer, or the first of a pyramid's third stage, on the tokens that an image of
random numbers gives it. On a GPU the time is that of its kernels, on a CPU that of torch's operators.
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.program import DTYPES
from hyena_vision.benchmark.step import count_tokens, create_model
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.benchmark.timing import FAILED, OK, attempt
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError
from hyena_vision.training.meta import meta_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("hyena2d_vit_small", "triton:hyena2d_vit_small", "vit_small_patch16_224")
IMG_SIZES = (224, 512, 1024, 2048)
OTHERS = "others"
_TOKENS, _LISTED = 2**15, 12
_COLORS = [f"C{index}" for index in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # C7 is a grey, as the others are
# What the names of torch's kernels begin with, before they say what they do
_NOISE = re.compile(r"\bvoid |\(anonymous namespace\)::|\b(at|native|c10|std)::")


@dataclass(frozen=True)
class ProfileRow:
    """One kernel of one block.

    Attributes:
        model: Name, as of `hyena_vision.benchmark.step.create_model`.
        img_size: Side of the image in pixels.
        grid: Side of the block's grid of tokens; None if there is no such model.
        batch_size: Images of a call.
        mode: "infer", or "train" for forward and backward.
        dtype: Of autocast, "float32" for none.
        device: Where it ran.
        kernel: Its name, "others" for all that are not among the largest.
        calls: In a call of the block.
        us: Microseconds in a call of the block; None if it failed.
        share: Of the time of all kernels of the block.
        block_us: Microseconds of all kernels in a call of the block.
        status: "ok", "out of memory", or "failed" and why.
        machine: What it was measured on.
    """

    model: str
    img_size: int
    grid: int | None
    batch_size: int | None
    mode: str
    dtype: str
    device: str
    kernel: str
    calls: float | None
    us: float | None
    share: float | None
    block_us: float | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `profile`."""
    parser = commands.add_parser("profile", help="the kernels of a block by their time", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="as of `models`")
    parser.add_argument("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="pixels")
    parser.add_argument("-b", "--batch-size", type=positive_int, metavar="N", help="default: about 32768 tokens")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of autocast, float32 for none")
    parser.add_argument("--train", action="store_true", help="forward and backward besides inference")
    parser.add_argument("--reparam", action="store_true", help="reparameterize models for inference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="calls that are profiled")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for the rows as CSV and Markdown and their figure as PNG"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[ProfileRow]:
    """Profile, print the tables, and write CSV, Markdown and figure.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: matplotlib is missing.
    """
    if args.output is not None:
        require_matplotlib()
    rows: list[ProfileRow] = []
    for mode in ("infer", "train") if args.train else ("infer",):
        for img_size in args.img_sizes:
            for name in args.models:
                rows += _profile(name, img_size, mode, args)
                if args.output is not None:
                    write_csv(rows, args.output, "profile.csv")
    text = markdown(rows)
    print(text)
    if args.output is not None:
        (Path(args.output) / "profile.md").write_text(text, encoding="utf-8")
        save_figure(plot(rows), args.output, "profile.png")
    return rows


def _profile(name: str, img_size: int, mode: str, args: argparse.Namespace) -> list[ProfileRow]:
    """Rows of one block, heaviest first; or one that says why there are none."""
    of_machine = args.dtype, args.device, "", None, None, None, None, OK, describe_machine()
    row = ProfileRow(name, img_size, None, args.batch_size, mode, *of_machine)

    def measure() -> list[tuple[str, float, float]]:
        nonlocal row
        grid = _grid(name, img_size)
        row = replace(row, grid=grid, batch_size=args.batch_size or max(1, _TOKENS // grid**2))
        call = make_call(name, img_size, row.batch_size, mode, args.dtype, args.device, args.reparam)
        times = kernel_times(call, args.device, args.rounds)
        if not times:
            raise RuntimeError("the profiler saw no kernels")
        return times

    try:
        times, status = attempt(measure)
    except UserError as error:  # no such model or block: the others have one
        times, status = None, f"{FAILED}: {error}"
    if times is None:
        return [replace(row, status=status)]
    whole = sum(us for _, _, us in times)
    largest, rest = times[:_LISTED], times[_LISTED:]
    if rest:
        largest.append((OTHERS, sum(calls for _, calls, _ in rest), sum(us for _, _, us in rest)))
    row = replace(row, block_us=whole)
    return [replace(row, kernel=kernel, calls=calls, us=us, share=us / whole) for kernel, calls, us in largest]


def _grid(name: str, img_size: int) -> int:
    """Side of the grid of tokens that the block has; a pyramid's third stage has patches of 16 pixels."""
    with meta_device():
        tokens = count_tokens(create_model(name, img_size), img_size)
    return max(1, img_size // 16 if tokens is None else math.isqrt(tokens))


def make_call(
    name: str, img_size: int, batch_size: int, mode: str, dtype: str, device: str, reparam: bool
) -> Callable[[], object]:
    """Make a function that calls a block of a model once.

    Args:
        name: As for `create_model`.
        img_size: Side of the images.
        batch_size: Number of images.
        mode: "infer", or "train" for forward and backward.
        dtype: Name of autocast's dtype, "float32" for none.
        device: Where it runs.
        reparam: Whether inference is that of `timm.utils.reparameterize_model`.

    Returns:
        A function without arguments.

    Raises:
        UserError: The model has neither blocks nor a third stage with blocks.
    """
    with torch.device(device):
        model = create_model(name, img_size).train(mode == "train")
        images = torch.randn(batch_size, 3, img_size, img_size)
    if reparam and mode == "infer":
        model = reparameterize_model(model, inplace=True)
    blocks = getattr(model, "blocks", None)
    if blocks is None and len(getattr(model, "stages", ())) > 2:
        blocks = getattr(model.stages[2], "blocks", None)
    if not blocks:
        raise UserError(f"{name} has neither blocks nor a third stage with blocks")
    kind = torch.device(device).type
    autocast = partial(torch.autocast, kind, DTYPES[dtype]) if dtype != "float32" else nullcontext
    tokens = _input_of(blocks[0], partial(model, images), autocast)
    parameters = [parameter for parameter in blocks[0].parameters() if parameter.requires_grad]
    del model, images

    def call(block: nn.Module = blocks[0]) -> object:
        with autocast(), torch.set_grad_enabled(mode == "train"):
            y = block(tokens)
        return torch.autograd.grad(y, [tokens, *parameters], y.detach(), allow_unused=True) if mode == "train" else y

    tokens.requires_grad_(mode == "train")
    return call


class _Reached(Exception):
    """The block has been called."""


def _input_of(block: nn.Module, forward: Callable[[], Tensor], autocast: Callable) -> Tensor:
    """What a block is called with in a forward pass."""
    seen = []

    def keep(module: nn.Module, inputs: tuple) -> None:
        seen.append(inputs[0].detach().clone())
        raise _Reached

    hook = block.register_forward_pre_hook(keep)
    try:
        with torch.no_grad(), autocast():
            forward()
    except _Reached:
        pass
    finally:
        hook.remove()
    return seen[0]


def kernel_times(call: Callable[[], object], device: str, rounds: int) -> list[tuple[str, float, float]]:
    """Profile a function without arguments, after three calls of warm-up.

    Args:
        call: The function.
        device: Whose kernels count; torch's operators themselves on the CPU.
        rounds: Calls that are profiled.

    Returns:
        Name, calls and microseconds of each kernel in one call, heaviest first.
    """
    on_gpu = torch.device(device).type == "cuda"
    for _ in range(3):
        call()
    if on_gpu:
        torch.cuda.synchronize(device)  # else kernels of the warm-up may count
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(rounds):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    times: dict[str, tuple[float, float]] = {}
    for event in profiler.key_averages():
        of_gpu = event.device_type != torch.autograd.DeviceType.CPU
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if of_gpu == on_gpu and us > 0:
            name = short_name(event.key)
            calls, before = times.get(name, (0.0, 0.0))
            times[name] = calls + event.count / rounds, before + us / rounds
    return sorted(((name, *time) for name, time in times.items()), key=lambda time: -time[2])


def short_name(kernel: str) -> str:
    """The first 80 characters of a kernel's name, without the namespaces that all of torch's have."""
    return _NOISE.sub("", kernel)[:80]


def markdown(rows: Sequence[ProfileRow]) -> str:
    """A table for each model, size and mode."""
    parts = []
    for key in dict.fromkeys((row.model, row.img_size, row.mode) for row in rows):
        some = [row for row in rows if (row.model, row.img_size, row.mode) == key]
        what = f"{key[0]}, {key[1]} px, {'training' if key[2] == 'train' else 'inference'}"
        if some[0].block_us is None:
            parts.append(f"{what}: {some[0].status}\n")
            continue
        what += f", batch {some[0].batch_size}, {some[0].dtype}"
        parts.append(f"{what}: {some[0].block_us:.0f} us in a call of one block\n")
        some = [replace(row, kernel=f"`{row.kernel}`") for row in some]  # <float> is no tag
        parts.append(markdown_table(some, ("kernel", "calls", "us", "share")) + "\n")
    return "\n".join(parts)


def plot(rows: Sequence[ProfileRow]) -> "Figure":
    """A bar for each model, size and mode: nanoseconds per token, of which the heaviest kernels are named.

    Args:
        rows: Rows of one or more models.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    bars = list(dict.fromkeys((row.model, row.img_size, row.mode) for row in rows))
    labels = [f"{model}, {img_size} px, {mode}" for model, img_size, mode in bars]
    time: dict[str, dict[tuple, float]] = {}
    for row in rows:
        if row.us is not None and row.grid is not None and row.batch_size is not None:
            per_token = 1000 * row.us / (row.batch_size * row.grid**2)
            time.setdefault(row.kernel, {})[row.model, row.img_size, row.mode] = per_token
    heaviest = sorted(time, key=lambda kernel: -sum(time[kernel].values()))
    named = [kernel for kernel in heaviest if kernel != OTHERS][: len(_COLORS)]
    figure = Figure(figsize=(11, 2.2 + 0.32 * len(bars) + 0.18 * len(named)), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(bars)
    # A label that begins with an underscore would have no place in the legend
    groups = [(f" {kernel[:70]}", [kernel], color) for kernel, color in zip(named, _COLORS, strict=False)]
    groups.append((OTHERS, [kernel for kernel in heaviest if kernel not in named], "0.8"))
    for label, kernels, color in groups:
        widths = [sum(time[kernel].get(bar, 0.0) for kernel in kernels) for bar in bars]
        axes.barh(labels, widths, left=left, color=color, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    failures = {(row.model, row.img_size, row.mode): row.status for row in rows if row.status != OK}
    for bar, status in failures.items():
        axes.text(0, bars.index(bar), f" {status[:90]}", va="center", fontsize="x-small", color="0.4")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel="nanoseconds per token of the block")
    figure.legend(loc="outside lower center", fontsize="x-small", ncols=2)
    return figure
