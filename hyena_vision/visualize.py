"""See what a model looks at: the filters of a layer, and the effective receptive field.

    python -m hyena_vision.visualize filters output/train/NAME --layer 0 --output filters.png
    python -m hyena_vision.visualize receptive-field output/train/NAME --beside vit_small_patch16_224 --img-size 384 \
        --images photos --output field.png

`filters` and `effective_receptive_field` return tensors; pictures need matplotlib.
"""

import io
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hyena_vision.data import DataError, find_files, load_image
from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.pretrained import OnnxModel, Pretrained, load, usable_device
from hyena_vision.training.arguments import LineParser, positive_int
from hyena_vision.training.checkpoint_files import reason, replace_file
from hyena_vision.training.errors import ConfigError, UserError, one_line

OUTPUTS = (".png", ".pdf", ".svg")
_FLOOR = -4.0  # log10 of the least gradient that has a colour of its own
_NONE = 1e-6  # of the largest gradient: below it is rounding


def mixers(model: nn.Module) -> dict[str, Hyena1d | Hyena2d]:
    """Return the Hyena layers of a model by name, in their order.

    Example:
        >>> list(mixers(timm.create_model("hyena2d_iso_tiny", depth=2)))
        ['blocks.0.mixer', 'blocks.1.mixer']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, Hyena1d | Hyena2d)}


@torch.no_grad()
def filters(model: nn.Module, layer: int, img_size: int | tuple[int, int], in_chans: int = 3) -> Tensor:
    """Return the taps of a Hyena layer's filters, as they are for images of a size.

    The tap at displacement u weighs the token u before: y[t] sums h[u] x[t - u]. It does not contain the layer's skip,
    which adds to the tap at 0. Filters that depend on the image (FiLM) are those of an image of mean colour.

    Args:
        model: Model with Hyena layers.
        layer: Number of the layer among them, from 0; negative numbers count from the last one.
        img_size: Height and width in pixels, or one number for both.
        in_chans: Channels of the images.

    Returns:
        (filters, C, 2 H - 1, 2 W - 1) of a 2D layer on H x W tokens, with u = 0 in the middle; (filters, C, 2 L - 1) of
        a 1D layer on L tokens, or (filters, C, L) from u = 0 on if it is causal.

    Raises:
        UserError: The model has no such layer, or cannot take the size.

    Example:
        >>> filters(timm.create_model("hyena2d_iso_tiny"), 0, 16).shape  # 2 x 2 pixels to a token
        torch.Size([1, 64, 15, 15])
    """
    layers = list(mixers(model).values())
    if not layers:
        raise UserError("the model has no Hyena layer, whose filters could be shown")
    if not -len(layers) <= layer < len(layers):
        raise UserError(f"the model has the Hyena layers 0 to {len(layers) - 1}, got layer {layer}")
    mixer, seen = layers[layer], []
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    like = next(model.parameters())
    hook = mixer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(torch.zeros(1, in_chans, height, width, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"the model cannot take images of {height} x {width}: {reason(error)}") from error
    finally:
        hook.remove()
    tokens = seen[0]
    grid = tuple(tokens.shape[1:3])
    if mixer.filter.cond_dim:
        return mixer.filter(_size(mixer, grid), tokens.flatten(1, 2).mean(1))[:, 0]
    return mixer.filter(_size(mixer, grid))


def effective_receptive_field(model: nn.Module, images: Tensor, probes: int = 2) -> Tensor:
    """Return how strongly each pixel moves what the model computes for the token in the middle.

    That is the root mean square of the derivatives of that token's channels, before the last norm, with respect to the
    pixel, over channels and images. It is estimated without bias from derivatives of sums of all channels with random
    signs. Where nothing is seen it is zero, or what fast Fourier transforms round to, about 1e-8 of its largest value.

    Args:
        model: Model in eval mode: of timm, or one that maps images to (B, C, h, w).
        images: (B, in_chans, H, W).
        probes: Random sums for each image.

    Returns:
        (H, W), at least 0. The token is number h // 2, w // 2.

    Raises:
        UserError: The model gives no map of tokens, or cannot take the images.

    Example:
        >>> model = torch.nn.Conv2d(3, 8, kernel_size=3, padding=1)
        >>> int((effective_receptive_field(model, torch.randn(2, 3, 9, 9)) > 0).sum())
        9
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
    for image in images.split(1):
        pixels = image.detach().clone().requires_grad_()
        with torch.enable_grad():
            tokens = _token_map(model, pixels)
            token = tokens[0, :, tokens.shape[2] // 2, tokens.shape[3] // 2]
        for probe in range(probes):
            signs = torch.randint(2, token.shape, generator=generator).to(token) * 2 - 1
            (gradient,) = torch.autograd.grad(token, pixels, signs, retain_graph=probe < probes - 1)
            total += gradient[0].double().square().sum(0)
    return (total / (len(images) * probes * len(token) * images.shape[1])).sqrt().float()


def area_of(field: Tensor, share: float = 0.9) -> float:
    """Return the least part of the pixels that holds a share of a field's sum, 0 to 1.

    Example:
        >>> area_of(torch.tensor([[0.0, 6.0], [1.0, 3.0]]))
        0.5
    """
    ranked = field.double().flatten().sort(descending=True).values.cumsum(0)
    return int((ranked < share * ranked[-1] - 1e-9).sum() + 1) / field.numel()


def _size(mixer: Hyena1d | Hyena2d, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens on each axis of the filter: a sequence has one."""
    return grid if mixer.rank == 2 else (grid[0] * grid[1],)


def _token_map(model: nn.Module, images: Tensor) -> Tensor:
    """Return the last features of a model as (B, C, h, w)."""
    try:
        if hasattr(model, "forward_intermediates"):
            tokens = model.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]
        else:
            tokens = model(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = " x ".join(map(str, images.shape[2:]))
        raise UserError(f"the model cannot take images of {size}: {reason(error)}") from error
    if not isinstance(tokens, Tensor) or tokens.ndim != 4:
        raise UserError(f"{type(model).__name__} gives no map of tokens (B, C, h, w), so no receptive field")
    return tokens


def draw_filters(taps: Tensor, title: str, channels: int | None = None, causal: bool = False):
    """Draw filters: of a 2D layer as images, of a 1D layer as curves.

    Args:
        taps: Of `filters`.
        title: Title of the figure.
        channels: How many channels to draw at most, evenly spaced; None is 32 images or 16 curves.
        causal: Whether the first tap is that of u = 0, else the one in the middle is.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, (count, width), is_image = _figure(), taps.shape[:2], taps.ndim == 4
    most = min(channels or (32 if is_image else 16), count * width)
    chosen = [round(i * (count * width - 1) / max(most - 1, 1)) for i in range(most)]
    columns = min(8 if is_image else 4, most)
    rows = -(-most // columns)
    figure.set_size_inches(columns * (1.35 if is_image else 2.8) + 1.2, rows * 1.5 + 1.2)
    axes = figure.subplots(rows, columns, sharex=True, sharey=is_image, squeeze=False)
    first = [0 if causal else -(n // 2) for n in taps.shape[2:]]
    for index, axis in enumerate(axes.flat):
        if index >= most:
            axis.set_visible(False)
            continue
        number, channel = divmod(chosen[index], width)
        values = taps[number, channel].float().cpu().numpy()
        largest = float(abs(values).max())
        name = f"channel {channel}" if count == 1 else f"filter {number}, ch. {channel}"
        if is_image:
            (top, left), (height, across) = first, values.shape
            extent = (left - 0.5, left + across - 0.5, top + height - 0.5, top - 0.5)
            shown = axis.imshow(values / (largest or 1), "RdBu_r", vmin=-1, vmax=1, extent=extent)
            axis.set_title(f"{name}\nlargest {largest:.2g}", fontsize=7)
        else:
            axis.plot(range(first[0], first[0] + len(values)), values, linewidth=0.8)
            axis.axhline(0, color="0.7", linewidth=0.5, zorder=0)
            axis.set_title(name, fontsize=7)
        axis.tick_params(labelsize=6, labelbottom=index + columns >= most)
    if is_image:
        bar = figure.colorbar(shown, ax=axes, shrink=0.6, aspect=30)
        bar.set_label("tap / largest tap of its channel")
        figure.supxlabel("displacement u along the width (tokens)", fontsize=9)
        figure.supylabel("displacement u along the height (tokens)", fontsize=9)
    else:
        figure.supxlabel("displacement u in raster order (tokens)", fontsize=9)
        figure.supylabel("tap h[u]", fontsize=9)
    figure.suptitle(f"{title}\nthe tap at u weighs the token u before:  y[t] = $\\Sigma$ h[u] x[t $-$ u]", fontsize=10)
    return figure


def draw_fields(fields: dict[str, Tensor], title: str):
    """Draw effective receptive fields beside each other, on one logarithmic scale.

    Args:
        fields: Of `effective_receptive_field`, by the title of each picture.
        title: Title of the figure.

    Returns:
        A matplotlib figure.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = _figure()
    figure.set_size_inches(4.2 * len(fields) + 1.2, 5.2)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items(), strict=True):
        relative = (field / field.max().clamp_min(torch.finfo(field.dtype).tiny)).cpu()
        none = relative < _NONE
        picture = relative.log10().masked_fill(none, torch.nan).numpy()
        shown = axis.imshow(picture, "magma", vmin=_FLOOR, vmax=0)
        axis.set_facecolor("0.8")
        height, width = field.shape
        axis.set(xlabel="width (pixels)", ylabel="height (pixels)")
        parts = [f"half of it lies in {area_of(field, 0.5):.1%} of the pixels, 90% in {area_of(field):.1%}"]
        parts += [f"{none.double().mean():.1%} of the pixels have none (grey)"] if none.any() else []
        axis.set_title("\n".join([f"{name}, {height} x {width}", *parts]), fontsize=9)
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.8, extend="min")
    bar.set_label("gradient of the token in the middle,\nlog10 of its part of the largest")
    figure.suptitle(title, fontsize=11)
    return figure


def _figure():
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('pictures need matplotlib, which is missing: pip install "hyena-vision[train]"') from error
    return Figure(layout="constrained")


def _save(figure, path: str) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format=path.rpartition(".")[2].lower(), dpi=150)
    replace_file(path, picture.getvalue())


def main(argv: Sequence[str] | None = None, prog: str = "hyena_vision.visualize") -> None:
    """Run the program.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.
        prog: Name of the program in its messages.

    Raises:
        SystemExit: Code 2 for wrong arguments, 1 for what else went wrong, each after one line on stderr.
    """
    args = _create_parser(prog).parse_args(argv)
    try:
        if not args.output.lower().endswith(OUTPUTS):
            raise ConfigError(
                f"argument --output: expected a name that ends in {', '.join(OUTPUTS)}, got {args.output}"
            )
        _figure()  # before the work
        usable_device(args.device)
        (_draw_filters if args.what == "filters" else _draw_fields)(args)
    except (UserError, DataError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    print(f"{prog}: wrote {args.output}", file=sys.stderr)


def _create_parser(prog: str) -> LineParser:
    parser = LineParser(prog=prog, description="Draw what a model looks at.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="filters|receptive-field")
    layer = commands.add_parser("filters", help="filters of a Hyena layer, as images (2D) or curves (1D)")
    field = commands.add_parser("receptive-field", help="effective receptive field, beside those of other models")
    for command in (layer, field):
        add = command.add_argument
        add("model", metavar="MODEL_OR_RUN", help="folder of a run, checkpoint, model.safetensors, or name of timm")
        add("--img-size", type=positive_int, metavar="N", help="image side in pixels (default: that of the training)")
        add("--output", required=True, metavar="FILE", help="PNG, PDF or SVG to write")
        add("--config", metavar="FILE", help="config.json of a model file that has none beside it")
        add("--device", default="cpu", help="device (default: cpu)")
        add("--untrained", action="store_true", help="leave models named by timm's names with initial weights")
    layer.add_argument("--layer", type=int, default=0, metavar="N", help="Hyena layer, from 0 (default: 0; -1: last)")
    layer.add_argument(
        "--channels", type=positive_int, metavar="N", help="most to draw (default: 32 images or 16 curves)"
    )
    add = field.add_argument
    add("--beside", nargs="+", default=[], metavar="MODEL_OR_RUN", help="models to draw beside it")
    add("--images", nargs="+", default=[], metavar="PATH", help="images, folders or globs (default: random pixels)")
    add("--num-images", type=positive_int, default=8, metavar="N", help="most to average over (default: 8)")
    return parser


def _draw_filters(args) -> None:
    loaded = _load(args, args.model, args.config)
    channels, *size = loaded.data_config["input_size"]
    taps = filters(loaded.model, args.layer, tuple(size), channels)
    name, mixer = list(mixers(loaded.model).items())[args.layer]
    title = f"{_title(loaded)}: filters of {name} at {size[0]} x {size[1]} pixels"
    _save(draw_filters(taps, title, args.channels, mixer.causal), args.output)


def _draw_fields(args) -> None:
    files = _choose_images(args.images, args.num_images) if args.images else []
    fields: dict[str, Tensor] = {}
    for source in [args.model, *args.beside]:
        loaded = _load(args, source, args.config if source == args.model else None)
        shape = loaded.data_config["input_size"]
        if files:
            images = torch.stack(list(map(loaded.preparation(), files)))
        else:
            images = torch.randn(args.num_images, *shape, generator=torch.Generator().manual_seed(0))
        name = _title(loaded)
        name = name if name not in fields else source
        fields[name] = effective_receptive_field(loaded.model, images.to(args.device))
    what = f"{len(files)} images" if files else f"{args.num_images} images of random pixels"
    _save(draw_fields(fields, f"Effective receptive field, {what}"), args.output)


def _choose_images(paths: Sequence[str], count: int) -> list[str]:
    """Return files that can be read, evenly spaced among all."""
    files, chosen, error = find_files(paths), [], None
    count = min(count, len(files))
    for file in (files[i * len(files) // count] for i in range(count)):
        try:
            load_image(file)
            chosen.append(file)
        except DataError as failed:
            error = failed
            print(f"left out: {failed}", file=sys.stderr)
    if not chosen:
        raise DataError(f"no image can be read; the last: {error}")
    return chosen


def _load(args, source: str, config: str | None) -> Pretrained:
    loaded = load(source, args.img_size, config, pretrained=not args.untrained)
    if isinstance(loaded.model, OnnxModel):
        raise UserError(
            f"{source} has no layers to look into: give the run or the checkpoint that it was exported from"
        )
    loaded.model.to(args.device)
    if args.untrained and not os.path.exists(loaded.name):
        loaded.name += " (initial weights)"
    return loaded


def _title(loaded: Pretrained) -> str:
    """Return the name of the run's folder or of the model."""
    name = loaded.name
    return os.path.basename(os.path.dirname(os.path.abspath(name))) if os.path.isfile(name) else name


if __name__ == "__main__":
    main()
