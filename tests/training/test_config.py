from pathlib import Path

import pytest
import torch
import yaml

from hyena_vision.training.arguments import create_parser
from hyena_vision.training.config import dump_args, parse_args
from hyena_vision.training.model import create_model, data_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    def config(text: str, *argv: str):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return parse_args(["-c", str(path), "--device", "cpu", *argv])

    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_parses_and_builds_its_model(path):
    args = parse_args(["-c", str(path), "--device", "cpu"])
    args.model_kwargs["device"] = "meta"
    model = create_model(args)
    size = data_config(args, model)["input_size"]
    assert model.num_classes == args.num_classes
    assert size == (args.in_chans or 3, args.img_size, args.img_size)
    assert model(torch.zeros(2, *size, device="meta")).shape == (2, args.num_classes)


def test_all_shipped_configs_are_tested():
    assert {path.stem for path in CONFIGS} >= {"digits", "digits_vit", "hyena_vit_base_in1k", "hyena2d_vit_small_in1k"}


def test_digits_baseline_differs_in_the_model_alone():
    hyena, vit = (yaml.safe_load(next(p for p in CONFIGS if p.stem == n).read_text()) for n in ("digits", "digits_vit"))
    assert {key for key in hyena.keys() | vit.keys() if hyena.get(key) != vit.get(key)} == {"model", "model_kwargs"}


def test_defaults_are_those_of_timm():
    defaults = vars(create_parser().parse_args([]))
    expected = {
        "model": "resnet50",
        "opt": "sgd",
        "lr": None,
        "lr_base": 0.1,
        "lr_base_size": 256,
        "momentum": 0.9,
        "weight_decay": 2e-5,
        "sched": "cosine",
        "epochs": 300,
        "warmup_epochs": 5,
        "warmup_lr": 1e-5,
        "smoothing": 0.1,
        "batch_size": 128,
        "device": "cuda",
        "amp_dtype": "float16",
        "model_ema_decay": 0.9998,
        "seed": 42,
        "log_interval": 50,
        "checkpoint_hist": 10,
        "workers": 4,
        "scale": [0.08, 1.0],
        "hflip": 0.5,
        "color_jitter": 0.4,
        "train_interpolation": "random",
        "val_split": "validation",
        "filter_lr_scale": 1.0,
    }
    assert {name: defaults[name] for name in expected} == expected


def test_values_get_the_types_of_their_arguments(config):
    args = config(
        """
        lr: 3e-4
        epochs: "12"
        amp: "false"
        model-ema: true
        batch-size: 64
        opt_betas: [0.9, 9.5e-1]
        mean: 0.5
        experiment: 7
        lr_noise: null
        interpolation: ''
        model_kwargs: {embed_dim: 64, drop: 1e-3, class_token: false, nested: {a: 1e-3}}
        """
    )
    assert args.lr == 3e-4 and isinstance(args.lr, float)
    assert args.epochs == 12 and args.amp is False and args.model_ema is True and args.batch_size == 64
    assert args.opt_betas == [0.9, 0.95] and args.mean == [0.5] and args.experiment == "7"
    assert args.lr_noise is None and args.interpolation == ""
    assert args.model_kwargs == {"embed_dim": 64, "drop": 1e-3, "class_token": False, "nested": {"a": 1e-3}}


def test_command_line_overrides_the_file(config):
    args = config("{epochs: 3, model_kwargs: {depth: 1}, data_dir: a}", "--epochs", "4", "--model-kwargs", "dim=2")
    assert args.epochs == 4 and args.model_kwargs == {"dim": 2} and args.data_dir == "a"


def test_dumped_arguments_parse_to_the_same(config):
    args = config("{opt: adamw, lr: 1e-3, model_kwargs: {depth: 2}, torchcompile: true, scale: [0.5, 1]}")
    assert args.torchcompile == "inductor"
    assert vars(config(dump_args(args))) == vars(args)
    assert dump_args(args).startswith("# hyena_vision ")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("bacth_size: 4", ["'bacth_size'", "batch_size"]),
        ("epochs: many", ["epochs", "integer", "'many'"]),
        ("epochs: 2.5", ["epochs", "integer", "2.5"]),
        ("epochs: true", ["epochs", "integer", "True"]),
        ("epochs: 0", ["epochs", "at least 1"]),
        ("epochs: null", ["epochs", "empty"]),
        ("lr: [1, 2]", ["lr", "number"]),
        ("lr: fast", ["lr", "number", "'fast'"]),
        ("amp: 'yes please'", ["amp", "true or false", "yes please"]),
        ("amp: 1", ["amp", "true or false", "1"]),
        ("clip_mode: norn", ["clip_mode", "norm, value, agc", "'norn'"]),
        ("input_size: [3, 224]", ["input_size", "3 values"]),
        ("scale: []", ["scale", "at least one"]),
        ("model_kwargs: [depth=3]", ["model_kwargs", "mapping"]),
        ("model: {name: a}", ["model", "string"]),
        ("- epochs", ["name: value", "list"]),
        ("epochs: [", ["not YAML"]),
    ],
)
def test_wrong_config_is_one_line(config, capsys, text, fragments):
    with pytest.raises(SystemExit) as stopped:
        config(text)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    for fragment in [*fragments, "config.yaml"]:
        assert fragment in lines[0], lines[0]


def test_device_falls_back_to_the_cpu_only_where_it_was_not_asked_for(monkeypatch, caplog, config):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse_args([]).device == "cpu"
    assert [record.getMessage() for record in caplog.records if "CPU" in record.getMessage()]
    for argv in (["--device", "cuda"], ["--device", "cuda:1"]):
        with pytest.raises(SystemExit):
            parse_args(argv)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert parse_args([]).device == "cuda"
    assert parse_args(["--device", "cpu"]).device == "cpu"
