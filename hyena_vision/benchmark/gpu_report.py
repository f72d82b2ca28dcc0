"""All that a GPU has to tell, in parts of at most eight minutes, the most valuable first.

Each part is a few steps, each a process of its own with a log: what fails, hangs or breaks the GPU's context is a row
of steps.csv, and the next step goes on. A part that is called again does what it has not done. Every part writes tables
as CSV and Markdown and a figure as PNG into a folder of its own. `--dry` runs the same steps without a GPU: tiny sizes,
and Triton's interpreter in its place.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import torch

from hyena_vision.benchmark import models, ops, profile, runs, tune
from hyena_vision.benchmark.figures import require_matplotlib, save_figure
from hyena_vision.benchmark.machine import describe_machine
from hyena_vision.benchmark.measure import SpeedRow
from hyena_vision.benchmark.processes import end, last_line
from hyena_vision.benchmark.program import run_command
from hyena_vision.benchmark.tables import markdown_table, read_csv, write_csv
from hyena_vision.ops.table import SWITCH, USES, Row
from hyena_vision.training.arguments import positive_int
from hyena_vision.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OK, LEFT = "ok", "left"
_SMALL = ("hyena2d_vit_small", "hyena_vit_small", "triton:hyena2d_vit_small", "vit_small_patch16_224")
_BASE = ("hyena2d_vit_base", "vit_base_patch16_224")
_VIT = "vit_small_patch16_224"
_PYRAMIDS = (("hpx_former_s18", _VIT), ("convnext_small", "swin_small_patch4_window7_224", _VIT))
# Contenders of an operator's part, against what memory can do and against attention; without a table ours are `fft`
_COMMANDS = ops, models, tune, profile, runs
_OPS = ("copy", "sdpa", "gated2d", "triton:gated2d", "gated1d", "triton:gated1d", "long_conv2d", "subquadratic_ops")
# With the marks of tests of the fused kernels, the most telling first
_TESTS = (
    "ops/test_long_conv_triton.py",
    "ops/test_short_filter.py",
    "ops/test_table.py",
    "layers/test_kept_kernels.py",
    "benchmark/test_tune.py",
)
_GRIDS = (14, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_OP_TOKENS = 2**18  # of a batch, enough to fill a large GPU's memory bus
_TRAINED_TOKENS = 2**15  # the activations of all blocks of ViT-S are then some 16 GB
_SECONDS_TO_START = 20  # with less of a part's time no step begins


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: Its folder in that of its part.
        argv: Of `python -m hyena_vision.benchmark`; or of pytest.
        seconds: After which it is ended.
        table: Whether `backend=None` follows the table that the report's own tuning made; else it is `fft`.
    """

    name: str
    argv: tuple[str, ...]
    seconds: int = 420
    table: bool = True


@dataclass(frozen=True)
class Part:
    """What is done in one call.

    Attributes:
        name: Its folder.
        steps: In order.
        gather: Writes tables and figure from the steps' files in its folder.
    """

    name: str
    steps: tuple[Step, ...]
    gather: Callable[[Path], None]


@dataclass(frozen=True)
class StepRow:
    """How a step went.

    Attributes:
        part: Number of its part.
        step: Its name.
        status: "ok", "left" for the next call, or what went wrong.
        seconds: It took.
        machine: It ran on.
    """

    part: int
    step: str
    status: str
    seconds: float
    machine: str


@dataclass(frozen=True)
class KernelRow:
    """The tests that launch a kernel; "no kernel" for those that launch none.

    Attributes:
        kernel: Its name.
        passed: Number of tests.
        failed: Number of tests.
        skipped: Number of tests.
    """

    kernel: str
    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class FailureRow:
    """A test that failed.

    Attributes:
        test: File and name.
        kernels: That it launched.
        message: Last line of what it said.
    """

    test: str
    kernels: str
    message: str


def add_command(commands: Any) -> None:
    """Add the sub-command `gpu-report`."""
    parser = commands.add_parser("gpu-report", help="all measurements of a GPU, part by part", description=__doc__)
    parser.add_argument(
        "--part", type=positive_int, nargs="+", default=[], metavar="N", help="which (default: say what there is to do)"
    )
    parser.add_argument("--output", default="output/gpu-report", metavar="DIR", help="folder of the report")
    parser.add_argument("--seconds", type=positive_int, default=480, metavar="N", help="that a part may take")
    parser.add_argument("--dry", action="store_true", help="the same steps without a GPU, tiny")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> list[StepRow]:
    """Do some parts, and say how long each took and what is left.

    Args:
        args: Parsed arguments of the sub-command.

    Returns:
        The rows of all steps so far.

    Raises:
        UserError: There is no such part.
    """
    require_matplotlib()
    folder = Path(args.output)
    parts = make_parts(args.dry, folder)
    if unknown := [number for number in args.part if number > len(parts)]:
        raise UserError(f"--part must be 1 to {len(parts)}, got {unknown[0]}")
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    for number in args.part:
        start = time.monotonic()
        _run_part(number, parts[number - 1], folder, args.seconds)
        print(f"PART={number} took {time.monotonic() - start:.0f} s")
    rows = _read_rows(folder)
    lines = [_state(number, part, rows) for number, part in enumerate(parts, 1)]
    print(*lines, sep="\n")
    if rows:
        text = ["# GPU report", "", *dict.fromkeys(row.machine for row in rows if row.machine), ""]
        written = [part.name for part in parts if (folder / part.name / "README.md").exists()]
        text += [*[f"- [{name}]({name}/README.md)" for name in written], "", *[f"    {line}" for line in lines], ""]
        text += [markdown_table(rows, ("part", "step", "status", "seconds")), ""]
        (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
    return rows


def _run_part(number: int, part: Part, folder: Path, seconds: float) -> None:
    """Do the steps that are not done, write their rows, and the tables and figure of all."""
    start = time.monotonic()
    status = {row.step: row.status for row in _read_rows(folder) if row.part == number}
    todo = [step for step in part.steps if status.get(step.name) != OK]
    # Those that failed come last: they may take all the time again
    for step in sorted(todo, key=lambda step: status.get(step.name, LEFT) != LEFT):
        rows = _read_rows(folder)
        print(f"{part.name}/{step.name} ...", flush=True)
        row = _run_step(number, step, folder / part.name / step.name, folder, seconds - (time.monotonic() - start))
        print(f"{part.name}/{step.name}: {row.status}, {row.seconds:.0f} s", flush=True)
        others = [other for other in rows if (other.part, other.step) != (row.part, row.step)]
        write_csv(sorted([*others, row], key=lambda row: row.part), str(folder), "steps.csv")
    try:
        part.gather(folder / part.name)
    except Exception as error:  # a figure that cannot be drawn must not hide what was measured
        print(f"{part.name}: its tables and figure failed: {type(error).__name__}: {error}", file=sys.stderr)


def _state(number: int, part: Part, rows: Sequence[StepRow]) -> str:
    """A line that says what is done and what is left of a part."""
    status = {row.step: row.status for row in rows if row.part == number}
    done = [step.name for step in part.steps if status.get(step.name) == OK]
    left = [step.name for step in part.steps if status.get(step.name, LEFT) == LEFT]
    failed = [step.name for step in part.steps if step.name not in (*done, *left)]
    told = [f"{len(done)} of {len(part.steps)} steps done"]
    told += [f"left: {', '.join(left)}"] if left else []
    told += [f"failed: {', '.join(failed)}"] if failed else []
    return f"PART={number} {part.name}: {'; '.join(told)}"


def _read_rows(folder: Path) -> list[StepRow]:
    path = folder / "steps.csv"
    return read_csv(str(path), StepRow) if path.exists() else []


# Processes


def _run_step(part: int, step: Step, folder: Path, root: Path, left: float) -> StepRow:
    """Run a step in a process, as long as it and its part may take."""
    start, folder = time.monotonic(), folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if left < _SECONDS_TO_START:
        return StepRow(part, step.name, LEFT, 0.0, "")
    table = root.resolve() / "table.json"
    switch = str(table) if step.table and table.exists() else "0"
    # A clean process that has imported most of what steps need forks them, which saves seconds of each. What counts
    # devices when it is imported (torch.utils.benchmark) is not preloaded: after it a fork has no CUDA
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "hyena_vision.models"])
    process = context.Process(target=_work, args=(step.argv, str(folder), switch))
    process.start()
    process.join(min(step.seconds, left))
    late = process.is_alive()
    if late:
        end(process.pid, process.join, 5)
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace") if (folder / "log.txt").exists() else ""
    machine = (folder / "machine.txt").read_text(encoding="utf-8") if (folder / "machine.txt").exists() else ""
    status = OK if process.exitcode == 0 else f"failed: {last_line(log)} (exit code {process.exitcode})"
    if late:
        status = f"failed: took longer than {step.seconds} s" if step.seconds <= left else LEFT
    return StepRow(part, step.name, status, round(time.monotonic() - start, 1), machine)


def _work(argv: Sequence[str], folder: str, switch: str) -> None:
    """Body of a step's process: what it says goes into its log, what it writes into its folder."""
    os.environ[SWITCH] = switch
    with open(os.path.join(folder, "log.txt"), "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    print("$", " ".join(argv), flush=True)
    if torch.cuda._is_in_bad_fork():
        raise RuntimeError("something counted devices before this process was forked, so CUDA cannot start in it")
    Path(folder, "machine.txt").write_text(describe_machine(), encoding="utf-8")
    if argv[0] == "pytest":
        code = subprocess.call([sys.executable, "-m", *argv, f"--junitxml={folder}/tests.xml"])
        sys.exit(code if code != 1 else 0)  # tests that failed are what the step is to find
    run_command(_COMMANDS, argv if argv[0] == "tune" else [*argv, "--output", folder])


# What there is to do


def make_parts(dry: bool, folder: Path) -> list[Part]:
    """The parts of the report.

    Args:
        dry: Whether there is no GPU.
        folder: Of the report; tuning writes table.json there.
    """
    device = ("--device", "cpu" if dry else "cuda")
    dtype = ("--dtype", "float32" if dry else "bfloat16")
    few = ("--rounds", "1", "--no-memory") if dry else ()
    sizes = (32,) if dry else (224, 512, 1024, 2048)
    small = ("hyena2d_vit_tiny", "vit_tiny_patch16_224") if dry else _SMALL

    def models(name: str, names: Sequence[str], *flags: str, sizes: Sequence[int] = sizes) -> list[Step]:
        steps = []
        for size in sizes:
            tokens = _TRAINED_TOKENS if "--train" in flags else _OP_TOKENS
            batch = "1" if dry else str(min(64, max(1, tokens // (size // 16) ** 2)))
            common = ("--img-sizes", str(size), "-b", batch, *device, *dtype, *few, *flags)
            steps.append(Step(f"{name}-{size}", ("models", "--models", *names, *common)))
        return steps

    def operators() -> list[Step]:
        steps = []
        for grid in (3,) if dry else _GRIDS:
            batch = ("-b", "1" if dry else str(max(1, _OP_TOKENS // grid**2)), "--dim", "1" if dry else "384")
            heads = ("--heads", "1" if dry else "6")
            common = ("ops", "--grids", str(grid), *batch, *heads, *device, *dtype, *few, "--only", *_OPS)
            steps += [
                Step(f"{grid}-forward", common, table=False),
                Step(f"{grid}-backward", (*common, "--backward"), table=False),
            ]
        return steps

    compiled = ("--compile",) if not dry else ()
    graphs = ("--compile", "reduce-overhead", "--reparam") if not dry else ("--reparam",)
    # Tests of one kernel each are many small compilations: eight processes share the cores and the GPU. One that hangs
    # is ended with its process, and xdist starts another
    flags = ["-m", "gpu", "-q", "-p", "no:cacheprovider", *(["-k", "test_zeros_give_zeros"] if dry else [])]
    flags += ["-n", "8"] if _has("xdist") and not dry else []
    flags += ["--timeout", "120", "--timeout-method", "thread"] if _has("pytest_timeout") and not dry else []
    tests = ["ops/test_long_conv_triton.py"] if dry else _TESTS
    steps = [Step(Path(test).stem, ("pytest", f"tests/{test}", *flags)) for test in tests]
    tune = ["tune", "--output", str(folder / "table.json"), "--go-on", "--time-limit", "380", *device]
    if dry:
        tune += "--dtype float32 --dim 1 --tokens 1 --rounds 1 --repeats 1 --img-sizes 32".split()
        tune += ["--models", "hyena2d_vit_tiny"]
    runs = ["runs", *device, *("--cases float32 --data folder --epochs 1".split() if dry else ["--go-on"])]
    blocks = (*device, *dtype, "--train", *(("-b", "1", "--rounds", "1") if dry else ()))
    names = ("hyena2d_vit_tiny",) if dry else _SMALL
    profiles = [Step(f"blocks-{n}", ("profile", "--models", *names, "--img-sizes", str(n), *blocks)) for n in sizes]
    eager = [*models("eager-infer", small, "--reparam"), *models("eager-train", small, "--train")]
    ways = {"infer": (*compiled, "--reparam"), "train": (*compiled, "--train")}
    base = [step for mode, way in ways.items() for step in models(f"compiled-{mode}", small if dry else _BASE, *way)]
    pyramids = [
        step
        for names in ((small,) if dry else _PYRAMIDS)
        for mode, way in ways.items()
        for step in models(f"{names[0]}-{mode}", names, *way, sizes=sizes[:3])
    ]
    return [
        Part("1-tests", tuple(steps), _gather_tests),
        Part("2-tune", (Step("tune", tuple(tune)),), _gather_table),
        Part("3-operators", tuple(operators()), _gather_operators),
        Part("4-inference", tuple(models("compiled", small, *compiled, "--reparam")), _gather_models),
        Part("5-training", tuple(models("compiled", small, *compiled, "--train")), _gather_models),
        Part("6-eager", tuple(eager), _gather_models),
        Part("7-base", tuple(base), _gather_models),
        Part("8-pyramids", tuple(pyramids), _gather_models),
        Part("9-cuda-graphs", tuple(models("graphs", small, *graphs, sizes=sizes[:2])), _gather_models),
        Part("10-runs", (Step("runs", tuple(runs)),), _copy_outputs),
        Part("11-profiles", tuple(profiles), _gather_profiles),
    ]


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# Tables and figures


def _write(
    folder: Path, name: str, tables: Sequence[tuple[str, Sequence[Any], Sequence[str]]], figure: "Figure"
) -> None:
    """Write rows as CSV and Markdown, the first under the part's name, and a figure."""
    text = [f"# {folder.name}", "", f"![{name}]({name}.png)", ""]
    for kind, rows, columns in tables:
        if rows:
            write_csv(rows, str(folder), f"{kind}.csv")
            text += [f"{kind}:", "", markdown_table(rows, columns), ""]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
    save_figure(figure, str(folder), f"{name}.png")


def _figure(panels: int) -> tuple["Figure", Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _lines(axes: Any, rows: Sequence[Any], label: str, x: str, y: str, **text: str) -> None:
    """A line per label over powers of two; what has no number is left out."""
    for name in dict.fromkeys(getattr(row, label) for row in rows):
        points = sorted(
            (getattr(row, x), getattr(row, y)) for row in rows if getattr(row, label) == name and getattr(row, y)
        )
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="o", label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({getattr(row, x) for row in rows})
    many = dict(rotation=90, fontsize="x-small") if len(ticks) > 8 else {}
    axes.set_xticks(ticks, [str(tick) for tick in ticks], **many)
    axes.set_xticks([], minor=True)
    axes.set(**text)
    axes.grid(alpha=0.3)


def _gather(folder: Path, name: str, row_type: type) -> list[Any]:
    """Rows of all steps."""
    paths = sorted(folder.glob(f"*/{name}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return [row for path in paths for row in read_csv(str(path), row_type)]


def _gather_tests(folder: Path) -> None:
    kernels: dict[str, list[int]] = {}
    failures = []
    cases = (case for path in sorted(folder.glob("*/tests.xml")) for case in ElementTree.parse(path).iter("testcase"))
    for case in cases:
        launched = [item.get("value") or "" for item in case.iter("property") if item.get("name") == "kernels"]
        names = launched[0].split() if launched and launched[0] else ["no kernel"]
        error = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        outcome = 1 if error is not None else 2 if case.find("skipped") is not None else 0
        for name in names:
            kernels.setdefault(name, [0, 0, 0])[outcome] += 1
        if error is not None:
            message = " ".join((error.get("message") or error.text or "").split())[:300]
            test = f"{(case.get('classname') or '').replace('.', '/')}.py::{case.get('name')}"
            failures.append(FailureRow(test, " ".join(names), message))
    rows = [KernelRow(name, *counts) for name, counts in sorted(kernels.items())]
    figure, (axes,) = _figure(1)
    left = [0] * len(rows)
    for label, color in (("passed", "C2"), ("failed", "C3"), ("skipped", "0.8")):
        counts = [getattr(row, label) for row in rows]
        axes.barh([row.kernel for row in rows], counts, left=left, color=color, label=label)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set(xlabel="tests that launch the kernel")
    axes.legend(fontsize="small")
    tables = [("kernels", rows, ("kernel", "passed", "failed", "skipped"))]
    _write(folder, "kernels", [*tables, ("failures", failures, ("test", "kernels", "message"))], figure)


@dataclass(frozen=True)
class TableRow:
    """A row of the table of backends, as text.

    Attributes:
        size: Such as 14x14, or 196 of a sequence.
        tokens: Their number.
        kind: Number of axes and dtype.
        use: As of `hyena_vision.ops.table.USES`.
        triton_ms: Median.
        fft_ms: Median.
        ratio: fft's time over Triton's: above 1 Triton is faster.
        backend: What is taken.
        wrong: Why the kernels are not used whatever their time.
    """

    size: str
    tokens: int
    kind: str
    use: str
    triton_ms: float | None
    fft_ms: float | None
    ratio: float | None
    backend: str
    wrong: str


def _gather_table(folder: Path) -> None:
    rows = []
    for values in json.loads((folder.parent / "table.json").read_text(encoding="utf-8"))["rows"]:
        row = Row(**{**values, "size": tuple(values["size"])})
        ratio = row.fft_ms / row.triton_ms if row.fft_ms and row.triton_ms else None
        size, kind = "x".join(map(str, row.size)), f"{len(row.size)}d {row.dtype}"
        times = (row.triton_ms, row.fft_ms, ratio)
        rows.append(TableRow(size, math.prod(row.size), kind, row.use, *times, row.backend, row.wrong))
    figure, panels = _figure(len(USES))
    for axes, use in zip(panels, USES, strict=True):
        text = dict(title=use, xlabel="tokens", ylabel="time of fft over Triton's")
        _lines(axes, [row for row in rows if row.use == use], "kind", "tokens", "ratio", **text)
        axes.axhline(1, color="0.5", linewidth=1)
    panels[0].legend(fontsize="small")
    columns = ("size", "kind", "use", "triton_ms", "fft_ms", "ratio", "backend", "wrong")
    _write(folder, "table", [("table", rows, columns)], figure)


def _gather_operators(folder: Path) -> None:
    rows = _gather(folder, "ops.csv", SpeedRow)
    figure, panels = _figure(2)
    for axes, mode in zip(panels, ("forward", "forward+backward"), strict=True):
        text = dict(title=mode, xlabel="grid side (tokens)", ylabel="traffic over that of a copy")
        _lines(axes, [row for row in rows if row.mode == mode], "name", "size", "copy_share", **text)
        axes.axhline(0.6, color="0.5", linewidth=1)
    panels[0].legend(fontsize="small")
    columns = ("name", "size", "batch_size", "mode", "ms", "ratio", "gb_per_s", "copy_share", "peak_mb", "status")
    _write(folder, "operators", [("operators", rows, columns)], figure)


def _gather_models(folder: Path) -> None:
    rows = _gather(folder, "models.csv", SpeedRow)
    modes = list(dict.fromkeys(row.mode for row in rows)) or ["infer"]
    figure, panels = _figure(2 * len(modes))
    for index, mode in enumerate(modes):
        speed, memory, some = panels[2 * index], panels[2 * index + 1], [row for row in rows if row.mode == mode]
        base = some[0].base if some else ""
        _lines(speed, some, "name", "size", "ratio", title=mode, xlabel="image size", ylabel=f"speed over {base}")
        speed.axhline(1, color="0.5", linewidth=1)
        _lines(memory, some, "name", "size", "peak_mb", title=mode, xlabel="image size", ylabel="peak memory (MB)")
        if any(row.peak_mb for row in some):
            memory.set_yscale("log")
    panels[0].legend(fontsize="small")
    columns = ("name", "size", "batch_size", "mode", "compile", "images_per_s", "ratio", "peak_mb", "status")
    _write(folder, "models", [("models", rows, columns)], figure)


def _gather_profiles(folder: Path) -> None:
    rows = _gather(folder, "profile.csv", profile.ProfileRow)
    write_csv(rows, str(folder), "profile.csv")
    save_figure(profile.plot(rows), str(folder), "profile.png")
    text = f"# {folder.name}\n\n![profile](profile.png)\n\n{profile.markdown(rows)}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _copy_outputs(folder: Path) -> None:
    """What a command wrote is the part's."""
    text = [f"# {folder.name}", ""]
    for path in sorted(path for path in folder.glob("*/*") if path.suffix in (".csv", ".md", ".png")):
        shutil.copy(path, folder / path.name)
        text += [path.read_text(encoding="utf-8"), ""] if path.suffix == ".md" else []
        text += [f"![{path.stem}]({path.name})", ""] if path.suffix == ".png" else []
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
