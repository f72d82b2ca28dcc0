"""Training that must not blow up: steps of a recipe with rounded signals and outliers, and the gradient of each block.

The model is trained by the recipe's loss, optimizer, clipping and schedule on images of its data set. In a part of the
images (`--outliers`) the normalized pixels are multiplied by `--outlier-scale`. A rounding is that of mixed precision:
linear layers and convolutions give signals in that dtype, mixers work on them, and gradients go back through the same
dtypes. Products are summed in float32, as on a GPU. float16 has torch's dynamic loss scale, which leaves out steps by
itself. What the recipe says of mixed precision, averages of weights, accumulated batches, class weights and compilation
has no effect.
"""

import argparse
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from hyena_vision.benchmark.accuracy import add_training_arguments, flags, named
from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.program import DTYPES
from hyena_vision.benchmark.tables import markdown_table, write_csv
from hyena_vision.training.arguments import positive_float, positive_int, probability
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.classes import NOTHING_KNOWN, fit_head
from hyena_vision.training.config import parse_args
from hyena_vision.training.model import create_model, data_config
from hyena_vision.training.optim import base_lr, create_optimizer, create_scheduler
from hyena_vision.training.pipeline import create_loaders
from hyena_vision.training.resolve import resolve
from hyena_vision.training.seeds import seed_generators
from hyena_vision.training.splits import create_datasets
from hyena_vision.training.task import create_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 10  # steps between two rows of norms.csv


@dataclass(frozen=True)
class Step:
    """What one update was."""

    loss: float
    norms: dict[str, float]  # of the gradient of each part, without the loss scale
    left_out: bool = False  # by the loss scale, whose gradients were not finite

    @property
    def norm(self) -> float:
        """Of the gradient of all weights."""
        return math.hypot(*self.norms.values())


@dataclass(frozen=True)
class Norm:
    """Gradient of a part of a model at one step.

    Attributes:
        model: What it is called.
        rounding: Dtype of the signals.
        step: From 0.
        loss: Of the step.
        part: Number of the block, after that of its stage where there are several ("1.0"), or "rest".
        norm: Of the gradient of its weights, before clipping, without the loss scale.
    """

    model: str
    rounding: str
    step: int
    loss: float
    part: str
    norm: float


@dataclass(frozen=True)
class StabilityRow:
    """A model under one rounding.

    Attributes:
        model: What it is called.
        rounding: Dtype of the signals.
        steps: That were made.
        not_finite: Steps whose loss or gradient was not finite; of float16 those whose loss was not.
        left_out: Steps that the loss scale of float16 left out.
        first_loss: Mean of the first tenth of the steps.
        last_loss: Mean of the last tenth.
        largest_norm: Of the gradient of all weights, of steps that were not left out; NaN where all were.
        median_norm: Of the same.
    """

    model: str
    rounding: str
    steps: int
    not_finite: int
    left_out: int
    first_loss: float
    last_loss: float
    largest_norm: float
    median_norm: float


def add_command(commands: Any) -> None:
    """Add the sub-command `stability`."""
    parser = commands.add_parser("stability", help="steps with rounded signals and outliers", description=__doc__)
    add = parser.add_argument
    add_training_arguments(parser)
    add("--img-size", type=positive_int, required=True, metavar="N", help="side of the images, in pixels")
    add("--steps", type=positive_int, default=1000, metavar="N", help="updates")
    add("--roundings", nargs="+", choices=DTYPES, default=[*DTYPES], metavar="DTYPE", help="of signals")
    add("--outliers", type=probability, default=0.01, metavar="P", help="part of the images whose pixels are far out")
    add("--outlier-scale", type=positive_float, default=100.0, metavar="X", help="factor of their pixels")
    add("--device", default="cpu", help="to train on")
    add("--output", required=True, metavar="DIR", help="folder for table and figure")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[StabilityRow]:
    """Make the steps, print the table, and write norms.csv, stability.csv, .md and .png.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows.

    Raises:
        UserError: The recipe does not fit, or matplotlib is missing.
    """
    require_matplotlib()
    args = argparse.Namespace(**{**vars(args), "models": named(args.models)})
    rows: list[StabilityRow] = []
    norms: list[Norm] = []
    for model in args.models:
        for rounding in args.roundings:
            steps = list(train(args, model, rounding))
            rows.append(summarize(model, rounding, steps))
            for number in range(0, len(steps), EVERY):
                parts = steps[number].norms.items()
                norms += [Norm(model, rounding, number, steps[number].loss, part, norm) for part, norm in parts]
            write_csv(rows, args.output, "stability.csv")
            write_csv(norms, args.output, "norms.csv")
    text = markdown_table(rows, [*vars(rows[0])])
    what = f"{args.task or args.data_dir} at {args.img_size} px, {args.outliers:.0%} of the images "
    what += f"times {args.outlier_scale:g}"
    (Path(args.output) / "stability.md").write_text(f"{what}. {describe_machine()}\n\n{text}\n", encoding="utf-8")
    save_figure(plot(norms), args.output, "stability.png")
    print(text)
    return rows


def train(args: argparse.Namespace, model: str, rounding: str) -> Iterator[Step]:
    """Make the steps of one model under one rounding, and say what each was."""
    own = resolve(parse_args(flags(args, model, args.img_size)))
    seed_generators(own.seed)
    datasets = create_datasets(own)
    own = fit_head(own, NOTHING_KNOWN, datasets.class_to_idx)
    network = create_model(own).to(own.device).train()
    device, dtype = torch.device(own.device), DTYPES[rounding]
    config = data_config(own, network)
    loader = create_loaders(own, config, datasets, network.num_classes, device, BadImages()).train
    round_signals(network, dtype)
    task = create_task(own, network, device)
    optimizer = create_optimizer(own, network, base_lr(own, own.batch_size))
    schedule = create_scheduler(own, optimizer, math.ceil(args.steps / own.epochs), True)[0]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    chance = torch.Generator().manual_seed(own.seed)
    for number, (images, targets) in zip(range(args.steps), repeat(loader), strict=False):
        far_out = (torch.rand(len(images), generator=chance) < args.outliers).to(images.device)
        loss = task(images * (1 + (args.outlier_scale - 1) * far_out)[:, None, None, None], targets)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms = gradient_norms(network)
        if own.clip_grad is not None:
            dispatch_clip_grad(network.parameters(), own.clip_grad, own.clip_mode)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if schedule is not None:
            schedule.step_update(number + 1)
        yield Step(loss.item(), norms, left_out=scaler.is_enabled() and scaler.get_scale() < before)


def repeat(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after another."""
    epoch = 0
    while True:
        loader.begin(epoch)
        yield from loader
        epoch += 1


def round_signals(network: nn.Module, dtype: torch.dtype) -> None:
    """Let linear layers and convolutions give signals of a dtype, from products in their own."""
    if dtype == torch.float32:
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: output.to(dtype))


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The norm of the gradient of each block's weights, by its number, and of the rest."""
    squares: dict[str, float] = {}
    for name, parameter in network.named_parameters():
        found = re.search(r"(?:(?:^|\.)(?:stages|layers)\.(\d+))?(?:^|\.)blocks\.(\d+)\.", name)
        part = ".".join(filter(None, found.groups())) if found else "rest"
        if parameter.grad is not None:
            squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    return {part: math.sqrt(square) for part, square in squares.items()}


def summarize(model: str, rounding: str, steps: Sequence[Step]) -> StabilityRow:
    """Put the steps of one model under one rounding into a row."""
    made = [step for step in steps if not step.left_out]
    tenth = max(1, len(made) // 10)
    losses = [step.loss for step in made] or [math.nan]
    means = [statistics.mean(part) for part in (losses[:tenth], losses[-tenth:])]
    norms = [step.norm for step in made] or [math.nan]
    not_finite = sum(not (math.isfinite(step.loss) and math.isfinite(step.norm)) for step in made)
    not_finite += sum(not math.isfinite(step.loss) for step in steps if step.left_out)
    left_out = len(steps) - len(made)
    return StabilityRow(model, rounding, len(steps), not_finite, left_out, *means, max(norms), statistics.median(norms))


def plot(norms: Sequence[Norm]) -> "Figure":
    """Draw the norm of each block's gradient over the steps, a panel for each model and rounding.

    Args:
        norms: Of all models and roundings.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(norm.model for norm in norms))
    roundings = list(dict.fromkeys(norm.rounding for norm in norms))
    figure = Figure(figsize=(4 * len(roundings), 3.2 * len(models)), layout="constrained")
    panels = figure.subplots(len(models), len(roundings), squeeze=False, sharex=True, sharey=True)
    for model, line in zip(models, panels, strict=True):
        for rounding, axes in zip(roundings, line, strict=True):
            own = [norm for norm in norms if (norm.model, norm.rounding) == (model, rounding)]
            parts = sorted({norm.part for norm in own}, key=lambda part: (part == "rest", part.zfill(4)))
            colors = colormaps["viridis_r"].resampled(len(parts) + 1)
            for index, part in enumerate(parts):
                points = [(norm.step, norm.norm) for norm in own if norm.part == part and math.isfinite(norm.norm)]
                label = part if part == "rest" else f"block {part}"
                axes.plot(*zip(*points, strict=True), color=colors(index + 1), label=label, linewidth=0.8)
            axes.set(yscale="log", title=f"{model}, {rounding}", xlabel="step", ylabel="gradient norm")
            axes.grid(alpha=0.3)
    if any(math.isfinite(norm.norm) for norm in norms):
        panels[0][0].legend(fontsize="x-small")
    return figure
