import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from trainer import arguments

from hyena_vision.training import resolve as resolving
from hyena_vision.training.config import dump_args, parse_args
from hyena_vision.training.errors import UserError
from hyena_vision.training.model import create_model, data_config
from hyena_vision.training.resolve import resolve

TIMM = json.loads((Path(__file__).parent / "data" / "timm_flags.json").read_text())["flags"]
DEFAULTS = {flag["dest"]: flag["default"] for flag in TIMM if flag["dest"] != "config"} | {"device": "cpu"}
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def config(tmp_path):
    def config(text: str, *argv: str):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return parse_args(["-c", str(path), "--device", "cpu", *argv])

    return config


@pytest.fixture
def packages(monkeypatch):
    """Make packages missing or present, whether they are installed or not."""

    def packages(**present: bool):
        found = importlib.util.find_spec

        def find_spec(name, *args):
            key = name.split(".")[-1]
            return (found("json") if present[key] else None) if key in present else found(name, *args)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)

    return packages


@pytest.fixture
def error(capsys):
    """Return the one line that wrong arguments end with."""

    def error(call, *args) -> str:
        with pytest.raises(SystemExit) as stopped:
            call(*args)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and len(lines) == 1, lines
        return lines[0]

    return error


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_parses_and_builds_its_model(path):
    own, without = [], {}
    if path.stem == "finetune":
        own = ["--model", "hyena2d_vit_tiny", "--num-classes", "5", "--img-size", "64"]
    elif path.stem.startswith("convert_"):  # of a model that has weights, which are not fetched here
        own = ["--model", "vit_tiny_patch16_224", "--num-classes", "5", "--img-size", "64", "--pretrained"]
        without = {"pretrained": False, "convert_stage": None}
    args = arguments("-c", str(path), *own)
    args = arguments("-c", str(path), *own, **without, model_kwargs=args.model_kwargs | {"device": "meta"})
    model = create_model(args)
    size = data_config(args, model)["input_size"]
    assert model.num_classes == args.num_classes
    assert size == (args.in_chans or 3, args.img_size, args.img_size)
    assert model(torch.zeros(2, *size, device="meta")).shape[:2] == (2, args.num_classes)


def test_all_shipped_configs_are_tested():
    assert {path.stem for path in CONFIGS} >= {"digits", "digits_vit", "hyena_vit_base_in1k", "hpx_former_b36_in1k"}


@pytest.mark.parametrize("recipe", ["digits", "far_digit"])
def test_baseline_differs_in_the_model_alone(recipe):
    hyena, vit = (
        yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())
        for name in (recipe, f"{recipe}_vit")
    )
    assert {key for key in hyena.keys() | vit.keys() if hyena.get(key) != vit.get(key)} == {"model", "model_kwargs"}


def test_resolved_arguments_cannot_be_changed(config):
    args = resolve(parsed := config("{model_kwargs: {depth: 2}, mean: 0.5}"))
    with pytest.raises(AttributeError, match="read-only: epochs stays 300"):
        args.epochs = 3
    with pytest.raises(AttributeError, match="read-only: epochs"):
        del args.epochs
    args.model_kwargs["depth"], vars(args)["epochs"], args.given["epochs"] = 3, 3, 3
    args.mean.append(0.5)
    assert (args.model_kwargs, args.mean, args.epochs, args.given["epochs"]) == ({"depth": 2}, [0.5], 300, 300)
    parsed.epochs, parsed.model_kwargs["depth"] = 4, 4
    assert args.epochs == 300 and args.model_kwargs == {"depth": 2}


def test_what_a_checkpoint_records_is_as_it_was_given(config, monkeypatch):
    own = dict(device="cuda:1", global_rank=3, local_rank=1, world_size=4, distributed=True)
    monkeypatch.setattr(resolving, "init_distributed_device_so", lambda device: own)
    monkeypatch.setattr(resolving, "chosen_backends", lambda device: f"those of {device}")
    args = resolve(parsed := config("{num_classes: 3}"))
    assert (args.device, args.rank, args.local_rank, args.world_size, args.distributed) == ("cuda:1", 3, 1, 4, True)
    assert args.backends == args.given["backends"] == "those of cuda:1"
    given = {name: value for name, value in vars(parsed).items() if name != "trained"}
    assert args.given == given | {"backends": "those of cuda:1"} and args.given["device"] == "cpu"


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
    args = config("{epochs: 8, model_kwargs: {depth: 1}, data_dir: a}", "--epochs", "9", "--model-kwargs", "dim=2")
    assert args.epochs == 9 and args.model_kwargs == {"dim": 2} and args.data_dir == "a"


def test_dumped_arguments_parse_to_the_same(config):
    args = config("{opt: adamw, lr: 1e-3, model_kwargs: {depth: 2}, torchcompile: true, scale: [0.5, 1]}")
    assert args.torchcompile == "inductor"
    text = dump_args(resolve(args))
    assert vars(config(text)) == vars(args)
    assert text.startswith("# hyena_vision ")


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
def test_wrong_config_is_one_line(config, error, text, fragments):
    line = error(config, text)
    for fragment in [*fragments, "config.yaml"]:
        assert fragment in line, line


def test_timms_own_defaults_load_unchanged(config):
    args = vars(config(yaml.safe_dump({"config": "", **DEFAULTS})))
    assert {name: args[name] for name in DEFAULTS} == DEFAULTS


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


def test_timms_recipe_loads(config):
    values = DEFAULTS | {
        "model": "vit_small_patch16_224",
        "opt": "lamb",
        "opt_betas": [0.9, 0.999],
        "lr_noise": [0.4, 0.9],
        "aug_repeats": 3.0,
        "aa": "rand-m7-mstd0.5-inc1",
        "bce_loss": True,
        "mixup": 0.2,
        "cutmix_minmax": [0.2, 0.8],
        "mean": [0.5],
        "amp": True,
        "amp_dtype": "bfloat16",
        "torchcompile": "inductor",
        "pretrained_cfg_overlay": {"num_classes": 10},
        "save_epochs": [100, 200],
        "stop_epoch": 150,
        "model_kwargs": {"class_token": False},
        "wandb_tags": ["a"],
        "naflex_max_seq_len": 1024,
        "worker_seeding": "part",
        "local_rank": 3,
    }
    args = vars(config(yaml.safe_dump(values)))
    assert {name: args[name] for name in values} == values


def test_empty_lists_are_none_given(config):
    args = config("{wandb_tags: null, save_epochs: [], opt_betas: [], train_img_sizes: [], device_modules: []}")
    assert args.wandb_tags == [] and args.save_epochs == []
    assert args.opt_betas is None and args.train_img_sizes is None and args.device_modules is None


def test_retired_keys_that_are_off_are_silent(config, caplog):
    args = config(
        """
        {amp: false, apex_amp: false, native_amp: false, amp_impl: native, aot_autograd: false, dynamo: false,
        dynamo_backend: null, num_gpu: 1, bn_tf: false, jsd: false, validation_batch_size_multiplier: 1, alpha_kd: 5}
        """
    )
    assert args.amp is False and args.jsd_loss is False and args.torchcompile is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{native_amp: true, amp: false, amp_dtype: bfloat16}", {"amp": True}),
        ("{apex-amp: true, amp_dtype: bfloat16}", {"amp": True}),
        ("{jsd: true, aug_splits: 3}", {"jsd_loss": True}),
        ("{dynamo: true, aug_repeat: 3}", {"torchcompile": "inductor", "aug_repeats": 3.0}),
        ("{milestones: [30, 60], iters_to_accum: 2}", {"decay_milestones": [30, 60], "grad_accum_steps": 2}),
    ],
)
def test_renamed_keys(config, caplog, monkeypatch, text, expected):
    monkeypatch.setattr("hyena_vision.training.config.has_bfloat16_instructions", lambda: True)  # others are told
    args = vars(config(text))
    assert {name: args[name] for name in expected} == expected
    assert not caplog.records


def test_retired_keys_that_cannot_be_honoured_are_a_warning(config, caplog):
    config("{amp_impl: apex, bn_tf: true, num_gpu: 4}")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "amp_impl" in messages[0] and "'apex'" in messages[0] and "bn_tf" in messages[1] and "num_gpu" in messages[2]


def test_augmentations_that_no_aug_ends_are_a_warning(config, caplog):
    config("{no_aug: true, hflip: 0.5, vflip: 0.0}")  # the default, and none
    assert not caplog.records
    config("{aa: rand-m9, hflip: 0.3}")
    assert not caplog.records
    config("{no_aug: true, aa: rand-m9, hflip: 0.3, scale: [0.5, 1.0]}")
    (record,) = caplog.records
    assert record.getMessage() == (
        "Without effect, because of --no-aug: --scale [0.5, 1.0], --hflip 0.3, --aa rand-m9."
    )


def test_folder_of_the_command_line_overrides_that_of_the_file(config):
    assert config("data_dir: a", "b").data_dir == "b"
    assert config("data_dir: a", "b", "--data-dir", "c").data_dir == "c"
    assert config("data: a").data_dir == "a"


def test_dump_has_no_values_of_the_run(config):
    own = dict(distributed=True, world_size=2, rank=0, local_rank=1, device="cuda:1")
    args = arguments("-b", "2", "DIR", "--save-epochs", "1", "--resume-force", "--start-epoch", "3", **own)
    values = yaml.safe_load(dump_args(args))
    assert (values["lr"], values["num_classes"]) == (None, None)  # as they were given
    assert not {"data", "config", "distributed", "world_size", "rank", "given", "trained"} & values.keys()
    assert not {"local_rank", "resume_force", "start_epoch"} & values.keys()  # of this start alone
    assert values["device"] == "cuda" and values["data_dir"] == "DIR" and values["save_epochs"] == [1]


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ("--torchscript", ["--torchscript", "left out", "--torchcompile"]),
        ("--fuser te", ["--fuser", "left out", "te", "TorchScript"]),
        ("--naflex-loader", ["--naflex-loader", "left out", "masked", "--train-img-sizes"]),
        ("--tta 3", ["--tta", "0 or 1", "2", "got 3", "neighbouring"]),
        ("--amp", ["--amp", "bfloat16"]),
        ("--amp --amp-dtype bfloat16 --model-dtype bfloat16", ["--amp", "float32", "bfloat16"]),
        ("--mixup 0.1 -b 3", ["--batch-size", "even", "got 3"]),
        ("--smoothing 1", ["--smoothing", "below 1", "1.0"]),
        ("--resume auto", ["--resume", "--experiment"]),
        ("--scale 0.5", ["--scale", "two numbers", "[0.5]"]),
        ("--opt adamx", ["--opt", "'adamx'", "did you mean"]),
        ("--epochs 10 --stop-epoch 11", ["--stop-epoch", "1 to 10", "got 11"]),
        ("--aug-splits 1", ["--aug-splits", "at least 2", "got 1"]),
        ("--jsd-loss", ["--jsd-loss", "--aug-splits", "at least 2", "got 0"]),
        ("--jsd-loss --aug-splits 3 --bce-loss", ["--jsd-loss", "--bce-loss"]),
        ("--aug-splits 3 --cutmix 1", ["--aug-splits", "--cutmix 1.0"]),
        ("--aug-splits 3 --no-prefetcher", ["--aug-splits", "--no-prefetcher"]),
        ("--split-bn", ["--split-bn", "--aug-splits", "--resplit"]),
        ("--split-bn --aug-splits 2 --sync-bn", ["--split-bn", "--sync-bn"]),
        ("--split-bn --resplit -b 7", ["--batch-size", "even", "got 7"]),
        ("--train-batch-sizes 4 8", ["--train-batch-sizes", "expected 0", "--train-img-sizes", "got 2"]),
        ("--train-img-sizes 32 64 --train-size-probs 1", ["--train-size-probs", "expected 2", "got 1"]),
        ("--train-img-sizes 32 64 --train-size-probs 1 -1", ["--train-size-probs", "at least 0", "-1.0"]),
        ("--train-img-sizes 32 --train-size-schedule progressive", ["--train-size-schedule", "two", "got 1"]),
        ("--train-img-sizes 32 64 --aug-splits 2", ["--train-img-sizes", "--aug-splits", "got 2"]),
        ("--train-img-sizes 32 64 --train-batch-sizes 4 5 --mixup 1", ["--train-batch-sizes", "even", "got 5"]),
        ("--train-size-random-mix 1.5", ["--train-size-random-mix", "0 to 1", "got 1.5"]),
        ("--train-size-schedule-spread -1", ["--train-size-schedule-spread", "got -1.0"]),
        ("--fsdp --model-dtype float16", ["--fsdp", "bfloat16", "float16"]),
        ("--fsdp --model-ema-force-cpu", ["--fsdp", "--model-ema-force-cpu"]),
        ("--wandb-resume-id abc", ["--wandb-resume-id", "--resume", "abc"]),
        ("--device-modules no_such_module", ["--device-modules", "'no_such_module'", "No module named"]),
        ("--device gpu", ["--device", "'gpu'"]),
    ],
)
def test_combinations_that_cannot_run(error, argv, fragments):
    line = error(parse_args, ["--device", "cpu", *argv.split()])
    for fragment in fragments:
        assert fragment in line, line


def test_combinations_that_can_run(packages):
    packages(scheduled_sampler=True, wandb=True, tensorboard=True)
    for argv in (
        "--aug-splits 3 --jsd-loss --split-bn -b 7",
        "--train-img-sizes 32 64 --train-batch-sizes 8 2 --train-size-probs 0 1 --mixup 1 -b 3",
        "--train-img-sizes 32 64 --train-size-schedule progressive --train-size-random-mix 0",
        "--fsdp --amp --amp-dtype bfloat16 --model-ema",
        "--log-wandb --log-tensorboard --wandb-resume-id abc --resume auto --experiment a",
        "--tta 2 --epochs 10 --stop-epoch 10 --save-epochs 1 99",
        "--naflex-patch-sizes 8 16 --naflex-patch-size-probs 1",
    ):
        parse_args(["--device", "cpu", *argv.split()])


def test_missing_packages(packages, error):
    packages(scheduled_sampler=False, wandb=False, tensorboard=False)
    line = error(parse_args, ["--device", "cpu", "--train-img-sizes", "32", "64"])
    assert "timm 1.0.29" in line and f"timm {timm.__version__}" in line
    for name in ("wandb", "tensorboard"):
        line = error(parse_args, ["--device", "cpu", f"--log-{name}"])
        assert f"--log-{name}" in line and 'pip install "hyena-vision[log]"' in line
    parse_args(["--device", "cpu"])


def test_folder_of_logs_is_not_the_package(error, monkeypatch, tmp_path):
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert "--log-tensorboard" in error(parse_args, ["--device", "cpu", "--log-tensorboard"])


def test_float16_amp_is_not_for_fsdp(monkeypatch, error):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = error(parse_args, ["--amp", "--fsdp"])
    assert "--fsdp" in line and "bfloat16" in line


def test_device_modules_are_imported_first(monkeypatch, tmp_path, error):
    (tmp_path / "module_of_a_device.py").write_text("imported = True")
    (tmp_path / "module_that_fails.py").write_text("raise RuntimeError('no driver\\nfound')")
    monkeypatch.syspath_prepend(tmp_path)
    args = parse_args(["--device", "cpu", "--device-modules", "module_of_a_device"])
    assert args.device_modules == ["module_of_a_device"] and sys.modules["module_of_a_device"].imported
    line = error(parse_args, ["--device", "nonsense", "--device-modules", "module_of_a_device", "module_that_fails"])
    assert "--device-modules" in line and "'module_that_fails'" in line and "no driver found" in line


def checkpoint(path: Path, args=None) -> str:
    torch.save({"state_dict": {}} if args is None else {"state_dict": {}, "args": args}, path)
    return str(path)


RUN = {
    "model": "resnet18",
    "input_size": [1, 8, 8],
    "num_classes": 10,
    "mixup": 0.5,
    "batch_size": 8,
    "model_kwargs": {"a": 1},
    "native_amp": True,
    "amp_dtype": "bfloat16",
    "data_dir": "there",
    "output": "out",
    "experiment": "run",
    "resume": "auto",
    "device": "cuda:3",
    "start_epoch": 3,
    "initial_checkpoint": "weights.pth",
    "pretrained": True,
    "pretrained_path": "vit.pth",
    "local_rank": 1,
    "device_modules": ["no_such_module"],
    "dataset_trust_remote_code": True,
    "wandb_resume_id": "abc",
    "log_wandb": True,
    "torchscript": True,
    "rank": 1,
    "prefetcher": True,
}


@pytest.mark.parametrize("kind", [dict, lambda values: argparse.Namespace(**values)], ids=["dict", "namespace"])
def test_settings_of_a_checkpoint_are_the_defaults_to_validate_with(tmp_path, kind):
    path = checkpoint(tmp_path / "a.pth", kind(RUN))
    defaults, args = parse_args(["--device", "cpu"]), parse_args(["--device", "cpu", "--eval", path])
    changed = {name for name, value in vars(args).items() if value != getattr(defaults, name)}
    taken = {"model", "input_size", "num_classes", "mixup", "batch_size", "model_kwargs", "amp", "amp_dtype"}
    assert changed == taken | {"data_dir", "eval", "trained"}
    assert args.model == "resnet18" and args.amp and args.model_kwargs == {"a": 1} and args.data_dir == "there"
    assert args.trained["input_size"] == [1, 8, 8] and defaults.trained == {}


def test_file_and_command_line_override_a_checkpoint(config, tmp_path):
    path = checkpoint(tmp_path / "a.pth", RUN)
    args = config(f"{{eval: {path}, num_classes: 5, img_size: 16}}", "DIR", "-b", "33", "--model", "resnet34")
    assert (args.model, args.num_classes, args.batch_size, args.data_dir) == ("resnet34", 5, 33, "DIR")
    # The size is another, the channels stay
    assert (args.img_size, args.input_size, args.in_chans) == (16, None, 1)
    assert args.trained["input_size"] == [1, 8, 8]


def test_checkpoint_without_settings(tmp_path):
    for args in (None, "text"):
        parsed = parse_args(["--device", "cpu", "--eval", checkpoint(tmp_path / "a.pth", args)])
        assert parsed.model == "resnet50" and parsed.trained == {}


def test_wrong_checkpoint(tmp_path, error):
    with pytest.raises(UserError, match="no such checkpoint"):
        parse_args(["--device", "cpu", "--eval", str(tmp_path / "none.pth")])
    line = error(parse_args, ["--device", "cpu", "--eval", checkpoint(tmp_path / "a.pth", {"epochs": "many"})])
    assert "a.pth" in line and "epochs" in line and "'many'" in line
    line = error(parse_args, ["--device", "cpu", "--eval", checkpoint(tmp_path / "a.pth"), "--resume", "b.pth"])
    assert "--eval" in line and "no --resume" in line and "b.pth" in line


def test_head_of_several_layers_begins_as_asked(config):
    sizes = "depths: [1, 1, 1, 1], dims: [32, 32, 32, 32], base_img_size: 32"
    args = config(f"{{model: hpx_former_s18, model_kwargs: {{{sizes}}}, head_init_scale: 0.0, head_init_bias: -2.0}}")
    logits = create_model(resolve(args))(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(logits, torch.full((2, 1000), -2.0))
