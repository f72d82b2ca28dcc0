"""The training program, through its real `main()`, on small images that the tests draw themselves."""

import csv
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("train_imagenet", ROOT / "train_imagenet.py")
train_imagenet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(train_imagenet)

MODEL = ["--model", "hyena2d_iso_tiny", "--model-kwargs", "img_size=16", "patch_size=4", "embed_dim=16", "depth=1"]
MODEL += ["filter_dim=8", "drop_path_rate=0.1"]
QUICK = ["--device", "cpu", *MODEL, "--num-classes", "3", "-b", "8", "-j", "0", "--opt", "adamw", "--lr", "1e-2"]
QUICK += ["--epochs", "2", "--warmup-epochs", "0", "--mean", "0.5", "--std", "0.5", "--hflip", "0"]
# One update of plain SGD over all 24 images: the change of the weights is the gradient of the whole set
ONE_UPDATE = ["--no-aug", "--opt", "momentum", "--momentum", "0", "--lr", "0.1", "--epochs", "1", "--sched-on-updates"]
ONE_UPDATE += ["--model-kwargs", *MODEL[3:-1]]


def draw_images(folder: Path, counts: dict[str, int]) -> Path:
    """Write a folder of 16-pixel PNGs: three classes that differ in their strongest channel."""
    generator = numpy.random.default_rng(0)
    for split, count in counts.items():
        for channel, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 120, (16, 16, 3))
                pixels[..., channel] += 80
                Image.fromarray(pixels.astype("uint8")).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), {"train": 8, "val": 5})


@pytest.fixture
def run(images, tmp_path):
    def run(experiment: str, *argv: str) -> dict:
        start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", experiment]
        return train_imagenet.main([*start, *argv])

    return run


def load(folder: str | Path, name: str = "last.pth.tar") -> dict:
    return torch.load(Path(folder) / name, weights_only=True)


def summary(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_equal(first, second) -> None:
    """Compare nested dicts and lists of tensors and plain values, to the last bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_loss_falls_and_everything_is_written(run, capsys):
    outcome = run("run", "--epochs", "6", "--checkpoint-hist", "2", "--scale", "0.8", "1.0", "--smoothing", "0")
    rows = summary(outcome["folder"])
    assert [row["epoch"] for row in rows] == list("012345")
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    assert float(rows[-1]["eval_top1"]) > 80
    assert list(rows[0]) == ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
    assert float(rows[-1]["eval_top5"]) == 100  # of three classes
    files = sorted(os.listdir(outcome["folder"]))
    expected = ["args.yaml", "curves.png", "last.pth.tar", "model_best.pth.tar", "results.json", "summary.csv"]
    assert [name for name in files if not name.startswith("checkpoint-")] == expected
    assert len(files) - len(expected) == 2
    best = max(range(6), key=lambda epoch: float(rows[epoch]["eval_top1"]))
    assert outcome["best_epoch"] == load(outcome["folder"], "model_best.pth.tar")["epoch"] == best
    results = json.loads((Path(outcome["folder"]) / "results.json").read_text())
    assert results["parameters"] == sum(p.numel() for p in load(outcome["folder"])["state_dict"].values())
    assert results["images_per_second"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("--result\n")
    assert json.loads(printed.removeprefix("--result\n"))[0]["epoch"] in range(6)
    # args.yaml is itself a configuration
    again = train_imagenet.parse_args(["-c", os.path.join(outcome["folder"], "args.yaml")])
    assert (again.epochs, again.lr, again.model_kwargs["embed_dim"]) == (6, 0.01, 16)


def interrupt_at(monkeypatch, stop: int) -> None:
    train = train_imagenet.train_one_epoch

    def interrupted(epoch, *args, **kwargs):
        if epoch == stop:
            raise KeyboardInterrupt
        return train(epoch, *args, **kwargs)

    monkeypatch.setattr(train_imagenet, "train_one_epoch", interrupted)


EVERY_GENERATOR = ["--drop", "0.2", "--mixup", "0.5", "--cutmix", "0.5", "--reprob", "0.5", "--model-ema"]
EVERY_GENERATOR += ["--model-ema-decay", "0.9", "--hflip", "0.5", "--epochs", "3"]


@pytest.mark.parametrize("more", [[], ["--no-prefetcher", "--sched-on-updates", "--grad-accum-steps", "2"]])
def test_resume_continues_to_the_last_bit(run, monkeypatch, capsys, more):
    straight = run("straight", *EVERY_GENERATOR, *more)["folder"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(SystemExit) as stopped:
            run("stopped", *EVERY_GENERATOR, *more)
        assert stopped.value.code == 130
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    resumed = run("stopped", *EVERY_GENERATOR, *more, "--resume", "auto")
    assert [result["epoch"] for result in resumed["results"]] == [1, 2]
    first, second = load(straight), load(resumed["folder"])
    for key in ("state_dict", "state_dict_ema", "optimizer", "rng_states", "metric", "epoch"):
        assert_equal(first[key], second[key])
    first["saver"]["checkpoint_files"].sort(), second["saver"]["checkpoint_files"].sort()
    assert_equal(first["saver"], second["saver"])
    assert Path(straight, "summary.csv").read_bytes() == Path(resumed["folder"], "summary.csv").read_bytes()
    # The generators were really used: without their states the result is another one
    checkpoint = load(straight, "checkpoint-0.pth.tar")
    checkpoint["rng_states"] = []
    torch.save(checkpoint, Path(straight).parent / "unseeded.pth.tar")
    other = run("other", *EVERY_GENERATOR, *more, "--resume", str(Path(straight).parent / "unseeded.pth.tar"))
    assert not torch.equal(load(other["folder"])["state_dict"]["head.weight"], first["state_dict"]["head.weight"])


def test_resume_from_an_earlier_checkpoint_keeps_the_later_rows(run):
    folder = Path(run("run", "--epochs", "3")["folder"])
    before = summary(folder)
    outcome = run("run", "--epochs", "3", "--resume", str(folder / "checkpoint-0.pth.tar"))
    assert [row["epoch"] for row in summary(folder)] == list("012")
    assert summary(folder) == before  # the same again, since resuming is exact
    assert len((folder / "summary-before-epoch-1.csv").read_text().splitlines()) == 4
    assert (folder / "args-epoch-1.yaml").exists() and (folder / "args.yaml").exists()
    assert outcome["best_metric"] == max(float(row["eval_top1"]) for row in before)


def test_resume_auto_without_a_checkpoint_starts_and_of_a_finished_run_does_nothing(run):
    folder = run("run", "--epochs", "1", "--resume", "auto")["folder"]
    held = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    outcome = run("run", "--epochs", "1", "--resume", "auto")
    assert outcome["results"] == [] and outcome["best_epoch"] == 0
    for name, content in held.items():
        assert Path(folder, name).read_bytes() == content


def test_moving_average_is_updated_validated_and_saved(run, monkeypatch):
    follows = run("follows", "--model-ema", "--model-ema-decay", "0")
    state = load(follows["folder"])
    assert_equal(state["state_dict_ema"], state["state_dict"])
    stays = run("stays", "--model-ema", "--model-ema-decay", "1")
    state = load(stays["folder"])
    assert not torch.equal(state["state_dict_ema"]["head.weight"], state["state_dict"]["head.weight"])
    # An average that never moves has the same validation loss each time: it is the one that is validated
    assert len({row["eval_loss"] for row in summary(stays["folder"])}) == 1
    assert len({row["eval_loss"] for row in summary(follows["folder"])}) == 2


def test_bfloat16_amp_on_the_cpu(run):
    plain, amp = (
        float(summary(run(name, *argv)["folder"])[-1]["train_loss"])
        for name, argv in {"plain": [], "amp": ["--amp", "--amp-dtype", "bfloat16"]}.items()
    )
    assert amp != plain
    assert amp == pytest.approx(plain, rel=0.05)


def test_grad_accumulation_equals_a_large_batch(run):
    large = load(run("large", *ONE_UPDATE, "-b", "24")["folder"])["state_dict"]
    small = load(run("small", *ONE_UPDATE, "-b", "8", "--grad-accum-steps", "3")["folder"])["state_dict"]
    start = load(run("start", *ONE_UPDATE, "-b", "24", "--lr", "1e-30")["folder"])["state_dict"]
    for name, weight in large.items():
        gradient = weight - start[name]
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(small[name] - start[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.timeout(300)
def test_two_processes_equal_one(run, images, tmp_path):
    one = run("one", *ONE_UPDATE, "-b", "24")["folder"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "train_imagenet.py"), *QUICK, "--data-dir", str(images), "--output", str(tmp_path)]
    command += ["--experiment", "two", *ONE_UPDATE, "-b", "12", "-vb", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--result") == 1
    two = tmp_path / "two"
    first, second = load(one), load(two)
    for name, weight in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weight, rtol=1e-5, atol=1e-6)
    assert len(second["rng_states"]) == 2
    # 15 images on two processes: one of them is padding, and must not count
    for name in ("eval_top1", "eval_top5"):
        assert summary(one)[0][name] == summary(two)[0][name]
    assert float(summary(one)[0]["eval_loss"]) == pytest.approx(float(summary(two)[0]["eval_loss"]), rel=1e-5)
    assert float(summary(one)[0]["train_loss"]) == pytest.approx(float(summary(two)[0]["train_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "argv",
    [
        ["--layer-decay", "0.7", "--filter-lr-scale", "0.5", "--clip-grad", "1", "--grad-checkpointing"],
        ["--bce-loss", "--clip-grad", "0.02", "--clip-mode", "agc", "--channels-last", "--val-split", ""],
        ["--model-dtype", "bfloat16", "--mixup", "0.2", "--mixup-off-epoch", "1", "--aug-repeats", "3"],
        ["--torchcompile", "eager", "--model-ema", "--aa", "rand-m9-mstd0.5-inc1", "--val-interval", "2"],
        [
            "--sched",
            "plateau",
            "--opt",
            "lookahead_adamw",
            "--input-size",
            "3",
            "24",
            "16",
            "--model-kwargs",
            *MODEL[4:],
        ],
        ["--sched", "none", "--img-size", "32", "--model-kwargs", *MODEL[4:], "--eval-metric", "loss"],
    ],
    ids=lambda argv: argv[0],
)
def test_options_train(run, argv):
    folder = run("run", *argv)["folder"]
    assert summary(folder)[-1]["epoch"] == "1"
    assert all(not key.startswith(("module.", "_orig_mod.")) for key in load(folder)["state_dict"])


def test_weights_of_a_run_start_another(run, tmp_path):
    folder = run("first", "--model-ema", "--model-ema-decay", "0.5")["folder"]
    best = load(folder, "last.pth.tar")["state_dict_ema"]
    frozen = ["--opt", "momentum", "--momentum", "0", "--weight-decay", "0", "--lr", "1e-30", "--sched", "none"]
    exact = run("exact", "--initial-checkpoint", f"{folder}/last.pth.tar", *frozen)["folder"]
    assert_equal(load(exact)["state_dict"], best)
    five_classes = {**best, "head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}
    torch.save({"state_dict": five_classes}, tmp_path / "five.pth")
    adapted = run("adapted", "--pretrained-path", f"{tmp_path}/five.pth", *frozen)["folder"]
    adapted = load(adapted)["state_dict"]
    assert adapted["head.weight"].shape == (3, 16)
    assert torch.equal(adapted["patch_embed.proj.weight"], best["patch_embed.proj.weight"])


def expect_error(capsys, argv: list[str], code: int, *fragments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_imagenet.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if "error:" in line]
    assert stopped.value.code == code, lines
    assert len(errors) == 1 and "Traceback" not in "\n".join(lines), lines
    for fragment in fragments:
        assert fragment in errors[0], errors[0]


USER_ERRORS = {
    "flag": (["--bacth-size", "4"], 2, ["--bacth-size", "did you mean --batch-size"]),
    "type": (["--epochs", "many"], 2, ["--epochs", "many"]),
    "range": (["--batch-size", "0"], 2, ["--batch-size", "at least 1"]),
    "choice": (["--clip-mode", "norn"], 2, ["--clip-mode", "norn", "norm"]),
    "kwargs": (["--opt-kwargs", "fused"], 2, ["--opt-kwargs", "key=value", "fused"]),
    "model": (["--model", "hyena_vit_smal"], 2, ["hyena_vit_smal", "hyena_vit_small"]),
    "model argument": (["--model-kwargs", "embed_dmi=3"], 2, ["hyena2d_iso_tiny", "embed_dmi"]),
    "model value": (["--model-kwargs", "embed_dim=0"], 2, ["hyena2d_iso_tiny", "embed_dim"]),
    "optimizer": (["--opt", "adamww"], 2, ["adamww", "adamw"]),
    "optimizer argument": (["--opt-kwargs", "fussed=1"], 2, ["adamw", "fussed"]),
    "scheduler": (["--sched", "cosin"], 2, ["cosin"]),
    "device": (["--device", "cuda"], 2, ["--device", "CUDA"]),
    "unknown device": (["--device", "gpu"], 2, ["--device", "gpu"]),
    "float16 on the cpu": (["--amp"], 2, ["float16", "bfloat16"]),
    "odd batch": (["-b", "7", "--mixup", "0.8"], 2, ["7", "even"]),
    "mean": (["--mean", "0.5", "0.5"], 2, ["--mean", "3"]),
    "smoothing": (["--smoothing", "1.5"], 2, ["--smoothing", "1.5"]),
    "scale": (["--scale", "0.5"], 2, ["--scale"]),
    "no folder": (["--data-dir", "/no/such/folder"], 2, ["/no/such/folder"]),
    "no data": (["--data-dir", ""], 2, ["--data-dir"]),
    "no split": (["--val-split", "holdout"], 2, ["holdout"]),
    "data set": (["--dataset", "sklearn/iris"], 2, ["sklearn/iris", "sklearn/digits"]),
    "more classes": (["--num-classes", "2"], 2, ["--num-classes", "has 3 classes, the model 2"]),
    "fewer classes": (["--num-classes", "4"], 2, ["--num-classes", "has 3 classes, the model 4"]),
    "batch": (["-b", "25"], 2, ["25", "24"]),
    "resume": (["--resume", "/no/such.pth.tar"], 1, ["/no/such.pth.tar"]),
    "initial": (["--initial-checkpoint", "/no/such.pth"], 1, ["/no/such.pth"]),
    "pretrained": (["--pretrained-path", "/no/such.pth"], 1, ["/no/such.pth"]),
    "no weights": (["--pretrained"], 1, ["hyena2d_iso_tiny", "pretrained"]),
    "config": (["-c", "/no/such.yaml"], 2, ["/no/such.yaml"]),
}


@pytest.mark.parametrize("name", USER_ERRORS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_user_error_is_one_line(name, images, tmp_path, capsys, monkeypatch):
    argv, code, fragments = USER_ERRORS[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", "run"]
    expect_error(capsys, [*start, *argv], code, *fragments)
    assert not list(tmp_path.iterdir())


def test_auto_resume_needs_a_name(capsys, images):
    expect_error(capsys, [*QUICK, "--data-dir", str(images), "--resume", "auto"], 2, "--resume", "--experiment")


@pytest.mark.parametrize("content", [b"not an image", None], ids=["foreign", "truncated"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image_is_named(tmp_path, capsys, content, workers):
    folder = draw_images(tmp_path / "images", {"train": 4, "val": 1})
    bad = folder / "train" / "green" / "2.png"
    bad.write_bytes(bad.read_bytes()[:150] if content is None else content)
    argv = [*QUICK, "--data-dir", str(folder), "--output", str(tmp_path), "-j", workers]
    expect_error(capsys, argv, 1, str(bad))


def test_damaged_data_folders(tmp_path, capsys):
    start = [*QUICK, "--output", str(tmp_path / "out")]
    empty = tmp_path / "empty"
    (empty / "train" / "red").mkdir(parents=True)
    expect_error(capsys, [*start, "--data-dir", str(empty)], 2, str(empty))
    unlike = draw_images(tmp_path / "unlike", {"train": 4, "val": 1})
    (unlike / "val" / "green").rename(unlike / "val" / "grean")
    expect_error(capsys, [*start, "--data-dir", str(unlike)], 2, "grean", "green")
    assert not (tmp_path / "out").exists()


def test_damaged_checkpoints_are_named_and_nothing_is_lost(run, images, tmp_path, capsys):
    folder = Path(run("run")["folder"])
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    truncated, foreign, text, tensor, hostile = (
        tmp_path / f"{n}.pth" for n in ("cut", "vit", "text", "tensor", "evil")
    )
    truncated.write_bytes(held["last.pth.tar"][: len(held["last.pth.tar"]) // 2])
    torch.save({"fc.weight": torch.zeros(3)}, foreign)
    text.write_text("weights")
    torch.save(torch.zeros(3), tensor)
    torch.save({"state_dict": subprocess.Popen}, hostile)
    start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment"]
    for path in (truncated, foreign, text, tensor, hostile):
        expect_error(capsys, [*start, "run", "--resume", str(path)], 2, "run already")
        expect_error(capsys, [*start, "new", "--resume", str(path)], 1, str(path))
        expect_error(capsys, [*start, "new", "--initial-checkpoint", str(path)], 1, str(path))
        expect_error(capsys, [*start, "new", "--pretrained-path", str(path)], 1, str(path))
    other = ["--model-kwargs", *MODEL[3:-2], "filter_dim=8", "depth=2"]
    expect_error(capsys, [*start, "run", "--resume", "auto", *other], 1, "last.pth.tar", "does not fit")
    expect_error(capsys, [*start, "run", "--resume", "auto", "--data-dir", "/no/such/folder"], 2, "/no/such/folder")
    expect_error(capsys, [*start, "run"], 2, str(folder), "--resume auto")
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == held


def test_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("run", "--opt", "sgd", "--lr", "1e30", "--epochs", "3")
    assert stopped.value.code == 1
    assert "not finite" in (error := capsys.readouterr().err) or "loss is" in error


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a bug")

    monkeypatch.setattr(train_imagenet, "train_one_epoch", broken)
    with pytest.raises(TypeError, match="a bug"):
        run("run")
