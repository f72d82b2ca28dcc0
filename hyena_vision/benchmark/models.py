"""Speed, FLOPs and peak memory of image models against resolution, by the side of timm's ViT.

`ceiling:NAME` is timm's ViT of that name with attention's product taken out: what any mixer between the same two
projections could reach at best. `triton:NAME` is a Hyena model that runs the fused kernels, on a GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hyena_vision.benchmark.arguments import add_measurement_arguments
from hyena_vision.benchmark.measure import SpeedRow, measure, record
from hyena_vision.benchmark.step import CEILING, choose_batch_size, count_flops, count_tokens, make_step, on_meta
from hyena_vision.benchmark.timing import attempt
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

MODELS = ("hyena2d_vit_small", "hyena_vit_small", "vit_small_patch16_224", f"{CEILING}vit_small_patch16_224")
IMG_SIZES = (224, 384, 512, 768, 1024, 2048)


def add_command(commands: Any) -> None:
    """Add the sub-command `models`."""
    parser = commands.add_parser("models", help="speed, FLOPs and memory by resolution", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, metavar="NAME", help="of timm, ceiling:NAME or triton:NAME")
    add("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="sides, in pixels")
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
    parser.set_defaults(run=lambda args: record(measure_models, args, "models"))


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive_int(text)


def measure_models(
    models: Sequence[str] = MODELS,
    img_sizes: Sequence[int] = IMG_SIZES,
    *,
    base: str | None = None,
    train: bool = False,
    train_only: bool = False,
    compile: str = "no",
    reparam: bool = False,
    batch_size: int | str = "auto",
    batch_memory: float = 4.0,
    time_limit: float | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    rounds: int = 5,
    memory: bool = True,
) -> Iterator[SpeedRow]:
    """Measure models by resolution, all of a resolution in turn; arguments are those of the command.

    Raises:
        UserError: A model is unknown, the base is none of them, or no batch size can be chosen for them.
    """
    base = base or next((name for name in models if name.startswith("vit_")), models[0])
    if base not in models:
        raise UserError(f"the base must be one of the models, {', '.join(models)}; got {base!r}")
    for name in models:
        on_meta(name, img_sizes[0])  # a wrong name shows before anything is measured
    # A process that compiles for the CPU counts the compiler's memory too
    memory = memory and (compile == "no" or torch.device(device).type != "cpu")
    timing = dict(rounds=rounds, time_limit=time_limit, untimed_calls=int(compile != "no"))
    for mode in ("infer", "train") if train and not train_only else ("train",) if train_only else ("infer",):
        for img_size in img_sizes:
            batch = choose_batch_size(models, img_size, mode, batch_memory) if batch_size == "auto" else batch_size
            settings = dict(batch_size=batch, mode=mode, dtype=dtype, compile=compile, device=device)
            settings |= dict(reparam=reparam and mode == "infer")
            make, calls = partial(make_step, img_size=img_size, **settings), 2 if mode == "train" else 1
            columns = dict(size=img_size, base=base, **settings)
            for row in measure(make, dict.fromkeys(models), memory, timing, calls, **columns):
                model, images = on_meta(row.name, img_size), torch.empty(1, 3, img_size, img_size, device="meta")
                flops, _ = attempt(partial(count_flops, model, images))
                yield replace(row, tokens=count_tokens(model, img_size), gflops=flops and flops / 1e9)
