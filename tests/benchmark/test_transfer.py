"""Resolution transfer: what is trained where, what is validated, and what is not done twice."""

import csv
import io
import shutil
import statistics
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
import yaml
from trainer import load_exported, summary

from hyena_vision import train
from hyena_vision.benchmark import study, transfer
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.accuracy import Validation

HYENA = "hyena2d_iso_tiny patch_size=8 base_grid={size/8} embed_dim=16 depth=1 filter_dim=8"
MODELS = [f"hyena: {HYENA}"]
MODELS += ["attention: vit_tiny_patch16_224 patch_size=8 embed_dim=16 depth=1 num_heads=2"]
RECIPE = dict(opt="adamw", lr=1e-2, warmup_epochs=0, epochs=2, mean=[0.5], std=[0.5], workers=0, batch_size=8)
RECIPE |= dict(no_aug=True, crop_pct=1.0, in_chans=1, train_num_samples=16, val_num_samples=8)


@pytest.fixture
def started(monkeypatch):
    """Programs in this process; the names of runs and checkpoints that were started."""
    names = []

    def run(command, **options):
        argv = command[3:]  # python -m hyena_vision.train
        names.append(argv[argv.index("--experiment" if "--experiment" in argv else "--eval") + 1])
        with redirect_stdout(said := io.StringIO()):
            train.main(argv)
        return SimpleNamespace(returncode=0, stdout=said.getvalue())

    for module in (study, transfer):
        monkeypatch.setattr(module, "call", run)
    return names


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_trained_at_one_size_and_validated_at_others(started, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    output = tmp_path / "output"
    argv = ["transfer", "--task", "hyena/spatial_recall", "--recipe", str(tmp_path / "recipe.yaml"), "--train-size"]
    argv += ["32", "--img-sizes", "32", "48", "--seeds", "2", "--output", str(output), "--models", *MODELS]
    main(argv)  # without further training
    assert len(started) == 2 * 2 * 2
    started.clear()
    more = [*argv, "--more", "--epochs 1 --lr 1e-3"]
    main(more)
    assert sorted(started) == [f"{name}-seed{seed}-48" for name in ("attention", "hyena") for seed in (0, 1)]
    trials, rows = rows_of(output / "trials.csv"), rows_of(output / "transfer.csv")
    assert [(row["model"], row["size"], row["updates"]) for row in rows] == [
        (model, *rest) for model in ("hyena", "attention") for rest in (("32", "4"), ("48", "0"), ("48", "2"))
    ]
    for row in rows:
        key = "model", "size", "updates"
        own = [float(trial["loss"]) for trial in trials if all(trial[name] == row[name] for name in key)]
        assert len(own) == 2 and float(row["value"]) == pytest.approx(statistics.mean(own)) and row["metric"] == "mse"
        assert float(row["spread"]) == pytest.approx(statistics.stdev(own))
    (alone,) = (t for t in trials if (t["model"], t["seed"], t["size"], t["updates"]) == ("attention", "1", "48", "0"))
    result = train.main(["--eval", str(output / "runs/attention-seed1/last.pth.tar"), "--img-size", "48", "-j", "0"])
    assert float(alone["loss"]) == pytest.approx(result["loss"], rel=1e-6)
    (after,) = (t for t in trials if (t["model"], t["seed"], t["size"], t["updates"]) == ("hyena", "1", "48", "2"))
    assert after["loss"] == summary(output / "runs/hyena-seed1-48")[-1]["eval_loss"]
    before, trained = (load_exported(f"{output}/runs/hyena-seed0{end}").backbone for end in ("", "-48"))
    change = trained.patch_embed.proj.weight - before.patch_embed.proj.weight
    assert 0 < change.abs().max() < 2.5e-3  # two updates from those weights, with the rate of --more

    started.clear()
    shutil.rmtree(output / "runs")
    main(more)  # the record is enough
    assert not started and rows_of(output / "transfer.csv") == rows
    for others in ([*more[:-1], "--epochs 2"], [word if word != "32" else "64" for word in more]):
        with pytest.raises(SystemExit):  # what stands there is of other runs
            main(others)
        assert "holds runs of another recipe" in capsys.readouterr().err and not started


def test_seeds_of_other_calls_are_left_out():
    trials = [Validation("m", 32, None, seed, updates, None, float(seed)) for seed, updates in ((0, 4), (1, 6))]
    args = SimpleNamespace(models=["m"], train_size=32, img_sizes=[], seeds=1)
    assert transfer.summarize(args, trials) == [transfer.TransferRow("m", 32, 32, 4, "mse", 0.0, 0.0, 1)]


def test_arguments_that_are_of_the_images_at_hand(started, tmp_path, monkeypatch):
    """The filter keeps its grid; the short filter has the distance that is given for the size."""
    made = {}

    def create(args, create=train.create_model):
        mixer = (model := create(args)).backbone.blocks[0].mixer
        made[args.img_size, bool(args.eval)] = mixer.short_filter.dilation, mixer.filter.base_size
        return model

    monkeypatch.setattr(train, "create_model", create)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "epochs": 1}))
    argv = ["transfer", "--task", "hyena/spatial_recall", "--recipe", str(tmp_path / "recipe.yaml"), "--train-size"]
    argv += ["32", "--img-sizes", "64", "--seeds", "1", "--more", "--epochs 1", "--output", str(tmp_path / "output")]
    main([*argv, "--models", HYENA + " short_dilation={at/32}"])
    assert made == {(32, False): ((1, 1), (4, 4)), (64, True): ((2, 2), (4, 4)), (64, False): ((2, 2), (4, 4))}
