"""Throughput and peak memory of image models against resolution, by the side of timm's ViT.

`ceiling:NAME` is timm's ViT of that name with attention's product taken out: what any mixer between the same two
projections could reach at best. `triton:NAME` is a Hyena model that runs the fused kernels, on a GPU.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hyena_vision.benchmark import figures, tables
from hyena_vision.benchmark.command import add_measurement_arguments, apply_arguments, describe_machine, finish
from hyena_vision.benchmark.flops import count_flops
from hyena_vision.benchmark.measure import measure
from hyena_vision.benchmark.step import CEILING, choose_batch_size, count_tokens, create_model, make_step
from hyena_vision.benchmark.timing import speed_ratios
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

MODELS = ("hyena2d_vit_small", "hyena_vit_small", "vit_small_patch16_224", f"{CEILING}vit_small_patch16_224")
IMG_SIZES = (224, 384, 512, 768, 1024, 2048)


@dataclass(frozen=True)
class ModelRow:
    """One model at one resolution. Numbers are None where there are none; low and high are quartiles of the rounds."""

    model: str  # as of `create_model`
    img_size: int  # side in pixels
    tokens: int | None  # patches of the image, None for a model without
    batch_size: int  # images per call, the same for all models of a size
    mode: str  # "infer" or "train"
    dtype: str  # of autocast, "float32" for none
    compile: str  # mode of torch.compile, "no" for eager
    reparam: bool  # whether it was reparameterized for inference
    device: str
    images_per_s: float | None  # median of the rounds
    images_per_s_low: float | None
    images_per_s_high: float | None
    ms_per_image: float | None
    ratio: float | None  # speed over that of the base model in the same round: 2 is twice as fast
    ratio_low: float | None
    ratio_high: float | None
    base: str  # the base model
    peak_mb: float | None  # weights included, 10^6 bytes
    gflops: float  # counted, of a forward pass of one image, 10^9; that of the kernels in full
    status: str  # "ok", "single reading", "out of memory", or "failed" and why
    machine: str


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive_int(text)


def add_command(commands: Any) -> None:
    """Add the sub-command `models`."""
    parser = commands.add_parser("models", help="images/s and memory of models by resolution", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, metavar="NAME", help="of timm, ceiling:NAME or triton:NAME")
    add("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="pixels")
    add("--base", metavar="NAME", help="model that ratios are to (default: the first ViT of timm)")
    add("--train", action="store_true", help="measure training steps besides inference")
    add("--train-only", action="store_true", help="measure training steps and no inference")
    add("--compile", nargs="?", const="default", default="no", metavar="MODE", help="torch.compile")
    add("--reparam", action="store_true", help="reparameterize models for inference, as timm's scripts do")
    text = "a number, or auto: by --batch-memory"
    add("-b", "--batch-size", type=_batch_size, metavar="N", default="auto", help=text)
    add("--batch-memory", type=float, default=4.0, metavar="GB", help="budget of the activations")
    add("--time-limit", type=float, metavar="SECONDS", help="time what takes longer only once at each size")
    add_measurement_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[ModelRow]:
    """Measure, print the table, and write CSV and figure."""
    apply_arguments(args)
    done: list[ModelRow] = []

    def keep(rows: list[ModelRow]) -> None:
        done.extend(rows)
        print(f"{rows[0].mode} at {rows[0].img_size} pixels done", file=sys.stderr)
        if args.output is not None:
            tables.write_csv(done, args.output, "models.csv")

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
    finish(done, "model", figures.plot_models(done) if args.output else None, args.output, "models.png")
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
    # A process that compiles for the CPU counts the compiler's memory too
    memory = memory and (compile == "no" or torch.device(device).type != "cpu")
    rows: list[ModelRow] = []
    for mode in [mode for mode, wanted in (("infer", infer), ("train", train)) if wanted]:
        for img_size in img_sizes:
            batch = choose_batch_size(models, img_size, mode, batch_memory) if batch_size == "auto" else int(batch_size)
            settings = (img_size, batch, mode, dtype, compile, device, reparam and mode == "infer")
            found = measure(
                make_step,
                models,
                *settings,
                device=device,
                rounds=rounds,
                memory=memory,
                calls=2 if mode == "train" else 1,
                time_limit=time_limit,
                untimed_calls=int(compile != "no"),
            )
            for name, (timing, peak_mb) in found.items():
                tokens, gflops = _counted(name, img_size)
                low, middle, high = timing.quartiles(lambda seconds, batch=batch: batch / seconds)
                ratio_low, ratio, ratio_high = speed_ratios(timing, found[base].timing)
                row = ModelRow(
                    name, img_size, tokens, batch, *settings[2:5], settings[6], device, middle, low, high,
                    None if middle is None else 1000 / middle, ratio, ratio_low, ratio_high, base, peak_mb, gflops,
                    timing.status, describe_machine(),
                )  # fmt: skip
                rows.append(row)
            if on_rows is not None:
                on_rows(rows[-len(models) :])
    return rows


def _counted(name: str, img_size: int) -> tuple[int | None, float]:
    """Tokens and GFLOPs of a model that shows what it does, on no device."""
    with torch.device("meta"):
        model = create_model(name.removeprefix("triton:"), img_size, backend="fft").eval()
        return count_tokens(model, img_size), count_flops(model, torch.empty(1, 3, img_size, img_size))[0] / 1e9
