"""Throughput and peak memory of image models against resolution, by the side of timm's ViT.

`ceiling:NAME` is timm's ViT of that name with attention's product taken out: what any mixer between the same two
projections could reach at best. `triton:NAME` is a Hyena model that runs the fused kernels, on a GPU.
`original:NAME` is a model of HyenaPixel's family with the arithmetic of its authors' code.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hyena_vision.benchmark import report
from hyena_vision.benchmark.arguments import add_measurement_arguments, apply_arguments, batch_size
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.step import CEILING, choose_batch_size, count_tokens, create_model, make_step
from hyena_vision.benchmark.timing import FAILED, Timing, attempt, speed_ratio, time_interleaved
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

MODELS = ("hyena2d_vit_small", "hyena_vit_small", "vit_small_patch16_224", f"{CEILING}vit_small_patch16_224")
IMG_SIZES = (224, 384, 512, 768, 1024, 2048)


@dataclass(frozen=True)
class ModelRow:
    """One model at one resolution. Numbers are None where memory ran out or the system does not tell.

    Attributes:
        model: Name, as of `create_model`.
        img_size: Side of the image in pixels.
        tokens: Patches of the image, None for a model without.
        batch_size: Images per call, the same for all models of a size.
        mode: "infer" or "train".
        dtype: Of autocast, "float32" for none.
        compile: Mode of torch.compile, "no" for eager.
        reparam: Whether it was reparameterized for inference.
        device: Where it ran.
        images_per_s: Median of the rounds.
        images_per_s_low: Lower quartile.
        images_per_s_high: Upper quartile.
        ms_per_image: Of the median.
        ratio: Speed over that of the base model, median of the rounds: 2 is twice as fast.
        base: Name of the base model.
        peak_mb: Peak memory, weights included, in 10^6 bytes.
        status: "ok", "single reading", "out of memory", or "failed" and why.
        machine: What it was measured on.
    """

    model: str
    img_size: int
    tokens: int | None
    batch_size: int
    mode: str
    dtype: str
    compile: str
    reparam: bool
    device: str
    images_per_s: float | None
    images_per_s_low: float | None
    images_per_s_high: float | None
    ms_per_image: float | None
    ratio: float | None
    base: str
    peak_mb: float | None
    status: str
    machine: str


def add_command(commands: Any) -> None:
    """Add the sub-command `models`."""
    parser = commands.add_parser("models", help="images/s and memory of models by resolution", description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        metavar="NAME",
        help="of timm, ceiling:NAME, triton:NAME or original:NAME",
    )
    parser.add_argument("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="pixels")
    parser.add_argument("--base", metavar="NAME", help="model that ratios are to (default: the first ViT of timm)")
    parser.add_argument("--train", action="store_true", help="measure training steps besides inference")
    parser.add_argument("--train-only", action="store_true", help="measure training steps and no inference")
    parser.add_argument("--compile", nargs="?", const="default", default="no", metavar="MODE", help="torch.compile")
    parser.add_argument(
        "--reparam", action="store_true", help="reparameterize models for inference, as timm's scripts do"
    )
    parser.add_argument(
        "-b", "--batch-size", type=batch_size, metavar="N", default="auto", help="a number, or auto: by --batch-memory"
    )
    parser.add_argument("--batch-memory", type=float, default=4.0, metavar="GB", help="budget of the activations")
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS", help="time what takes longer only once at each size"
    )
    add_measurement_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[ModelRow]:
    """Measure, print the table, and write CSV and figure.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.
    """
    apply_arguments(args)
    done: list[ModelRow] = []

    def keep(rows: list[ModelRow]) -> None:
        done.extend(rows)
        print(f"{rows[0].mode} at {rows[0].img_size} pixels done", file=sys.stderr)
        if args.output is not None:
            report.write_csv(done, args.output, "models.csv")

    measure_models(
        args.models,
        args.img_sizes,
        train=args.train or args.train_only,
        infer=not args.train_only,
        dtype=args.dtype,
        compile=args.compile,
        batch_size=args.batch_size,
        batch_memory=args.batch_memory,
        rounds=args.rounds,
        device=args.device,
        time_limit=args.time_limit,
        memory=not args.no_memory,
        base=args.base,
        reparam=args.reparam,
        on_rows=keep,
    )
    print(report.table(done))
    if args.output is not None:
        report.save_figure(report.plot_models(done), args.output, "models.png")
    if failed := [row.model for row in done if row.status.startswith(FAILED)]:
        raise UserError(f"failed, as their rows say: {', '.join(dict.fromkeys(failed))}")
    return done


def measure_models(
    models: Sequence[str] = MODELS,
    img_sizes: Sequence[int] = IMG_SIZES,
    *,
    train: bool = False,
    infer: bool = True,
    dtype: str = "float32",
    compile: str = "no",
    batch_size: int | str = "auto",
    batch_memory: float = 4.0,
    rounds: int = 5,
    device: str = "cpu",
    time_limit: float | None = None,
    memory: bool = True,
    base: str | None = None,
    reparam: bool = False,
    on_rows: Callable[[list[ModelRow]], None] | None = None,
) -> list[ModelRow]:
    """Measure models at several resolutions, all models of a resolution in turn.

    Args:
        models: Names, as of `create_model`.
        img_sizes: Sides of the images in pixels.
        train: Whether training steps are measured.
        infer: Whether inference is.
        dtype: "float32", or "bfloat16" or "float16" for autocast.
        compile: Mode of torch.compile, "no" for eager.
        batch_size: Images per call, or "auto", see `choose_batch_size`.
        batch_memory: Budget of "auto" in GB.
        rounds: Readings of each model.
        device: Where they run.
        time_limit: Seconds after which a model is not called again at a size, None for no limit.
        memory: Whether peak memory is measured, before anything is timed: what dies of it there is not timed.
        base: Name that ratios are to, None for the first ViT of timm.
        reparam: Whether models are reparameterized for inference.
        on_rows: Called with the rows of each resolution as soon as they are known.

    Returns:
        One row per model, resolution and mode.

    Raises:
        UserError: A model is unknown, the base is none of them, or no batch size can be chosen for them.
    """
    base = base or next((name for name in models if name.startswith("vit_")), models[0])
    if base not in models:
        raise UserError(f"the base must be one of the models, {', '.join(models)}; got {base!r}")
    for name in models:
        with torch.device("meta"):
            create_model(name, img_sizes[0])  # a wrong name shows before anything is measured
    rows = []
    for mode in [mode for mode, wanted in (("infer", infer), ("train", train)) if wanted]:
        for img_size in img_sizes:
            batch = choose_batch_size(models, img_size, mode, batch_memory) if batch_size == "auto" else batch_size
            settings = (img_size, batch, mode, dtype, compile, device, reparam and mode == "infer")
            rows += _measure_size(models, settings, rounds, time_limit, memory, base)
            if on_rows is not None:
                on_rows(rows[-len(models) :])
    return rows


def _measure_size(
    models: Sequence[str], settings: tuple, rounds: int, time_limit: float | None, memory: bool, base: str
) -> list[ModelRow]:
    """Rows of one resolution and mode; `settings` are what `make_step` takes after the name."""
    img_size, batch, mode, dtype, compile, device, reparam = settings
    # A process that compiles for the CPU counts the compiler's memory too
    memory = memory and (compile == "no" or torch.device(device).type != "cpu")
    peaks: dict[str, float | None] = {}
    steps = {}

    def prepare(name: str) -> None:
        if memory:
            peaks[name] = peak_memory(make_step, name, *settings, device=device, calls=2 if mode == "train" else 1)
        steps[name] = make_step(name, *settings)

    timings = {name: Timing((), attempt(partial(prepare, name))[1]) for name in models}
    timings |= time_interleaved(steps, rounds, time_limit=time_limit, untimed_calls=int(compile != "no"))
    rows = []
    for name in models:
        with torch.device("meta"):
            tokens = count_tokens(create_model(name, img_size), img_size)
        low, middle, high = timings[name].quartiles(lambda seconds: batch / seconds)
        rows.append(
            ModelRow(
                model=name,
                img_size=img_size,
                tokens=tokens,
                batch_size=batch,
                mode=mode,
                dtype=dtype,
                compile=compile,
                reparam=reparam,
                device=device,
                images_per_s=middle,
                images_per_s_low=low,
                images_per_s_high=high,
                ms_per_image=None if middle is None else 1000 / middle,
                ratio=speed_ratio(timings[name], timings[base]),
                base=base,
                peak_mb=peaks.get(name),
                status=timings[name].status,
                machine=describe_machine(),
            )
        )
    return rows
