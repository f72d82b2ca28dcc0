"""Classify images with a trained model.

    python -m hyena_vision.predict output/train/NAME photos --top-k 3 --output predictions.csv
    python -m hyena_vision.predict hf-hub:timm/resnet50.a1_in1k "holiday/*.jpg" --device cuda --amp

Images are prepared as in the validation of the model's run. A file that cannot be read is a row that says so.
"""

import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hyena_vision.data import DataError, find_files
from hyena_vision.pretrained import OnnxModel, Pretrained, load, usable_device
from hyena_vision.training.arguments import LineParser, natural_int, positive_int
from hyena_vision.training.checkpoint_files import reason, replace_file
from hyena_vision.training.errors import ConfigError, UserError, one_line

OUTPUTS = (".csv", ".json")


@dataclass
class Row:
    """What a model says of one file, the most probable class first.

    Args:
        file: Path of the image.
        names: Names of the classes.
        indices: Their indices.
        probabilities: Their probabilities, of all classes together 1.
        error: Why the file could not be read; the lists are then empty.
    """

    file: str
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    error: str | None = None


def predict(
    model: str | os.PathLike | Pretrained,
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    top_k: int = 5,
    *,
    img_size: int | tuple[int, int] | None = None,
    config: str | os.PathLike | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str | None = None,
    amp: bool = False,
    amp_dtype: str = "bfloat16",
) -> Iterator[Row]:
    """Classify images.

    Args:
        model: Folder of a run, a file or a name, as for `hyena_vision.pretrained.load`; or what that has loaded.
        paths: Folders (with all images under them), files and globs; or one of them.
        top_k: Classes of each image, at most as many as there are.
        img_size: Height and width in pixels that images are brought to, or one number for both; None for those of the
            model.
        config: config.json of an exported file that has none beside it.
        batch_size: Images that the model takes at once.
        workers: Processes that read images; 0 reads in this one.
        device: Device of the model; None is CUDA where there is one, else the CPU.
        amp: Whether to compute in mixed precision.
        amp_dtype: Its low precision, "bfloat16" or "float16" (CUDA only).

    Returns:
        An iterator of a row for each file, in the order of the paths, by name within a folder.

    Raises:
        UserError: There is no such model, or it cannot take the images.
        DataError: There is no such path. A file that cannot be read raises nothing: its row says why.

    Example:
        >>> for row in predict("output/train/digits", "photos", top_k=1):  # doctest: +SKIP
        ...     print(row.file, row.names, row.probabilities, row.error)
    """
    files = find_files([paths] if isinstance(paths, str | os.PathLike) else paths)
    if isinstance(model, Pretrained) and (img_size or config):
        raise ConfigError("img_size and config are for load, got them beside what it has loaded")
    place = usable_device(device)
    loaded = model if isinstance(model, Pretrained) else load(model, img_size, config)
    if amp and isinstance(loaded.model, OnnxModel):
        raise ConfigError(f"argument --amp: {loaded.name} has the precision that it was exported with")
    if amp and amp_dtype == "float16" and place.type == "cpu":
        raise ConfigError("argument --amp: float16 needs a CUDA device; on the CPU use --amp-dtype bfloat16")
    autocast = partial(torch.autocast, place.type, getattr(torch, amp_dtype)) if amp else nullcontext
    loader = DataLoader(
        _Files(files, loaded),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        pin_memory=place.type == "cuda",
    )
    return _rows(loaded, loader, place, autocast, top_k)


class _Files(Dataset):
    """Images as the model takes them, with their files; in place of one that cannot be read, why."""

    def __init__(self, files: list[str], loaded: Pretrained):
        self.files, self.prepare = files, loaded.preparation()

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor | str]:
        file = self.files[index]
        try:
            return file, self.prepare(file)
        except DataError as error:
            return file, one_line(error).removeprefix(f"cannot read image {file}: ")

    def __len__(self) -> int:
        return len(self.files)


@torch.inference_mode()
def _rows(
    loaded: Pretrained, loader: DataLoader, device: torch.device, autocast: Callable, top_k: int
) -> Iterator[Row]:
    model = loaded.model.to(device)
    for batch in loader:
        readable = [image for _, image in batch if isinstance(image, torch.Tensor)]
        results = _classify(loaded, model, torch.stack(readable).to(device), autocast, top_k) if readable else []
        remaining = iter(results)
        for file, image in batch:
            if isinstance(image, str):
                yield Row(file, error=image)
            else:
                probabilities, indices = next(remaining)
                yield Row(file, [loaded.class_name(index) for index in indices], indices, probabilities)


def _classify(loaded: Pretrained, model, images: torch.Tensor, autocast: Callable, top_k: int) -> list[tuple]:
    """Return the greatest probabilities of each image, with the indices of their classes."""
    try:
        with autocast():
            logits = model(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = " x ".join(map(str, images.shape[2:]))
        raise UserError(f"{loaded.name} cannot take {len(images)} images of {size}: {reason(error)}") from error
    logits = logits[0] if isinstance(logits, tuple | list) else logits
    if logits.ndim != 2:
        raise UserError(f"{loaded.name} gives no classes: expected logits (B, classes), got {tuple(logits.shape)}")
    top = logits.float().softmax(-1).topk(min(top_k, logits.shape[1]))
    return list(zip(top.values.tolist(), top.indices.tolist(), strict=True))


def main(argv: Sequence[str] | None = None, prog: str = "hyena_vision.predict") -> list[Row]:
    """Run the program.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.
        prog: Name of the program in its messages.

    Returns:
        The rows that it has written.

    Raises:
        SystemExit: Code 2 for wrong arguments, 1 for what else went wrong, 130 for Ctrl-C, each after one line on
            stderr. Files that cannot be read are no error.
    """
    args = _create_parser(prog).parse_args(argv)
    try:
        if args.output:
            _check_output(args.output)
        loaded = load(args.model, args.img_size, args.config)
        names = ("top_k", "batch_size", "workers", "device", "amp", "amp_dtype")
        rows = predict(loaded, args.paths, **{name: getattr(args, name) for name in names})
        rows = list(tqdm(rows, "Predict", unit="image", leave=False, disable=None, file=sys.stderr))
        if args.output:
            is_json = args.output.lower().endswith(".json")
            # Of names that are not UTF-8: JSON's own escapes, or the bytes as they are
            text, errors = (_json(rows), "backslashreplace") if is_json else (_csv(rows), "surrogateescape")
            replace_file(args.output, text.encode("utf-8", errors))
        else:
            _print(_table(rows))
    except (UserError, DataError) as error:
        print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 1)) from error
    except KeyboardInterrupt:
        print(f"{prog}: interrupted, nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    height, width = loaded.data_config["input_size"][1:]
    unread = sum(row.error is not None for row in rows)
    said = f"{len(rows)} files at {height} x {width} pixels, {unread or 'none'} of them could not be read"
    if loaded.class_names is None:
        said += "; the model does not say what its classes are called"
    print(f"{prog}: {said}", file=sys.stderr)
    return rows


def _create_parser(prog: str) -> LineParser:
    parser = LineParser(prog=prog, description="Classify images with a trained model.")
    add = parser.add_argument
    add("model", metavar="MODEL_OR_RUN", help="folder of a run, checkpoint, model.safetensors, .onnx, or name of timm")
    add("paths", metavar="PATH", nargs="+", help="folder (all images under it), file or glob")
    add("--top-k", type=positive_int, default=5, metavar="N", help="classes of each image (default: 5)")
    add("--output", metavar="FILE", help="CSV or JSON to write, by its extension (default: a table on stdout)")
    add("--img-size", type=positive_int, metavar="N", help="image side in pixels (default: that of the training)")
    add("--config", metavar="FILE", help="config.json of a model file that has none beside it")
    add("-b", "--batch-size", type=positive_int, default=32, metavar="N", help="images at once (default: 32)")
    add("-j", "--workers", type=natural_int, default=0, metavar="N", help="processes that read images (default: 0)")
    add("--device", help="device (default: cuda, cpu where there is none)")
    add("--amp", action="store_true", help="compute in mixed precision")
    add("--amp-dtype", default="bfloat16", choices=("float16", "bfloat16"), help="low precision (default: bfloat16)")
    return parser


def _print(text: str) -> None:
    """Print what the terminal can show, unless nobody reads on (`| head`)."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends


def _check_output(path: str) -> None:
    """Find out what would stop the writing before the work is done."""
    if not path.lower().endswith(OUTPUTS):
        raise ConfigError(f"argument --output: expected a name that ends in {' or '.join(OUTPUTS)}, got {path}")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise ConfigError(f"argument --output: no such folder: {os.path.dirname(path)}")


def _csv(rows: list[Row]) -> str:
    """Return a line for each file: its classes and their probabilities in turn, and the error."""
    places = range(1, max((len(row.names) for row in rows), default=0) + 1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *(f"{part}_{place}" for place in places for part in ("name", "probability")), "error"])
    for row in rows:
        pairs = [(name, f"{p:.6f}") for name, p in zip(row.names, row.probabilities, strict=True)]
        pairs += [("", "")] * (len(places) - len(pairs))
        writer.writerow([row.file, *(cell for pair in pairs for cell in pair), row.error or ""])
    return text.getvalue()


def _json(rows: list[Row]) -> str:
    """Return a list with a line for each file."""
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n"


def _table(rows: list[Row]) -> str:
    """Return a table for people: each file, and its classes with percentages."""
    cells = [
        [row.file, *(f"{name} {p:.1%}" for name, p in zip(row.names, row.probabilities, strict=True))] for row in rows
    ]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*cells, fillvalue="")]
    for row, texts in zip(rows, cells, strict=True):
        texts += [] if row.error is None else [f"not read: {row.error}"]
    lines = ["  ".join(map(str.ljust, texts, [*widths, 0])).rstrip() for texts in cells]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
