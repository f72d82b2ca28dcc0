"""Speed, FLOPs and peak memory of image models against resolution, by the side of timm's ViT.

`triton:NAME` is a Hyena model that runs the fused kernels, on a GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hyena_vision.benchmark.measure import SpeedRow, measure, record
from hyena_vision.benchmark.program import add_measurement_arguments
from hyena_vision.benchmark.step import count_flops, count_tokens, make_step, on_meta
from hyena_vision.benchmark.timing import attempt
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

MODELS = ("hyena2d_vit_small", "hyena_vit_small", "vit_small_patch16_224")
IMG_SIZES = (224, 384, 512, 768, 1024, 2048)


def add_command(commands: Any) -> None:
    """Add the sub-command `models`."""
    parser = commands.add_parser("models", help="speed, FLOPs and memory by resolution", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, metavar="NAME", help="of timm, or triton:NAME")
    add("--img-sizes", type=positive_int, nargs="+", default=IMG_SIZES, metavar="N", help="sides, in pixels")
    add("--base", metavar="NAME", help="model that ratios are to (default: the first ViT of timm)")
    add("--train", action="store_true", help="measure training steps, not inference")
    add("--compile", nargs="?", const="default", default="no", metavar="MODE", help="torch.compile")
    add("--reparam", action="store_true", help="reparameterize models for inference, as timm's scripts do")
    text = "images per call: one number, or one for each of --img-sizes"
    add("-b", "--batch-size", type=positive_int, nargs="+", default=1, metavar="N", help=text)
    add("--time-limit", type=float, metavar="SECONDS", help="time what takes longer only once at each size")
    add_measurement_arguments(parser)
    parser.set_defaults(run=lambda args: record(measure_models, args, "models"))


def measure_models(
    models: Sequence[str] = MODELS,
    img_sizes: Sequence[int] = IMG_SIZES,
    *,
    base: str | None = None,
    train: bool = False,
    compile: str = "no",
    reparam: bool = False,
    batch_size: int | Sequence[int] = 1,
    time_limit: float | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    rounds: int = 5,
    memory: bool = True,
) -> Iterator[SpeedRow]:
    """Measure models by resolution, all of a resolution in turn; arguments are those of the command.

    Raises:
        UserError: A model is unknown, the base is none of them, or there are not as many batch sizes as image sizes.
    """
    base = base or next((name for name in models if name.startswith("vit_")), models[0])
    if base not in models:
        raise UserError(f"the base must be one of the models, {', '.join(models)}; got {base!r}")
    batches = [batch_size] if isinstance(batch_size, int) else list(batch_size)
    if len(batches) not in (1, len(img_sizes)):
        raise UserError(f"--batch-size takes one number or one for each of {len(img_sizes)} sizes, got {batches}")
    for name in models:
        on_meta(name, img_sizes[0])  # a wrong name shows before anything is measured
    # A process that compiles for the CPU counts the compiler's memory too
    memory = memory and (compile == "no" or torch.device(device).type != "cpu")
    timing = dict(rounds=rounds, time_limit=time_limit)
    settings = dict(mode="train" if train else "infer", dtype=dtype, compile=compile, device=device)
    settings |= dict(reparam=reparam and not train)
    for img_size, batch in zip(img_sizes, batches * (len(img_sizes) // len(batches)), strict=True):
        make = partial(make_step, img_size=img_size, batch_size=batch, **settings)
        columns = dict(size=img_size, batch_size=batch, base=base, **settings)
        for row in measure(make, dict.fromkeys(models), memory, timing, 2 if train else 1, **columns):
            model, images = on_meta(row.name, img_size), torch.empty(1, 3, img_size, img_size, device="meta")
            flops, _ = attempt(partial(count_flops, model, images))
            yield replace(row, tokens=count_tokens(model, img_size), gflops=flops and flops / 1e9)
