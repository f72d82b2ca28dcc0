"""Each flag that takes a value, with wrong ones: one line names both before a folder of images is opened."""

import re

import pytest
from trainer import MODEL, QUICK, expect_error, train_imagenet

from hyena_vision.training import config
from hyena_vision.training.arguments import create_parser

ACTIONS = {action.dest: action for action in create_parser()._actions if action.dest != "help" and action.nargs != 0}

# Names that only the data set or a service knows, and the recorded one
NAMES = """
    data data_dir dataset train_split val_split class_map input_key target_key output experiment wandb_project
    wandb_tags wandb_resume_id backends
""".split()
BY_TYPE = {
    "positive_int": ("0", "-1", "2.5"),
    "natural_int": ("-1", "2.5", "many"),
    "random_seed": ("-1", "2147483648", "1.5"),
    "int": ("many", "2.5", "nan"),
    "float": ("many", "1,5", "x"),
    "finite_float": ("nan", "inf", "much"),
    "natural_float": ("-0.5", "nan", "inf"),
    "positive_float": ("0", "-1", "nan"),
    "positive_part": ("0", "-1", "1.5"),
    "probability": ("-0.1", "1.5", "nan"),
    "part_below_one": ("-0.1", "1", "much"),
    "pixel_value": ("-0.1", "123.675", "nan"),
    "pixel_scale": ("0", "58.395", "-1"),
    "auto_augment": ("nonsense", "rand-nonsense", "augmix-q3"),
}
BY_ACTION = {"KeyValues": ("nonsense", "depth", "=")}
# Those whose type says less, or that need something beside them
OWN = {
    "config": ("/no/such.yaml", "/", "x"),
    "input_img_mode": ("nonsense", "rgb", "L"),
    "model": ("resnet5O", "hyena", "local-dir:/no/such"),
    "pretrained_path": ("/no/such.pth", "/", "x"),
    "initial_checkpoint": ("/no/such.pth", "/", "x"),
    "teacher_path": ("/no/such.pth", "/", "x"),
    "convert": ("hyena", "attention", "0"),
    "convert_blocks": ("some", "first 1.5", "9"),
    "convert_kwargs": ("nonsense", "order=1", "no_such=1"),
    "convert_stage": ("0", "all", "mixers"),
    "resume": ("/no/such.pth", "/", "x"),
    "eval": ("/no/such.pth", "/no/such", "x"),
    "freeze": ("nothing", "block.0", "*"),
    "gp": ("nonsense", "maximum", "3"),
    "img_size": ("18", "0", "-4"),
    "train_img_sizes": ("18", "0", "2.5"),
    "in_chans": ("0", "2", "5"),
    "input_size": ("5 16 16", "3 16", "3 18 16"),
    "fuser": ("nvfuser", "te", "x"),
    "torchcompile": ("inducto", "nonsense", "0"),
    "device": ("gpu", "cuda", "0x"),
    "device_modules": ("no_such_module", "no-such", "3"),
    "model_kwargs": ("nonsense", "img_size=16 patch_size=5", "depht=1"),
    "opt_kwargs": ("nonsense", "fussed=1", "amsgrad"),
    "opt": ("adamx", "lookahead_adamx", "0"),
    "opt_betas": ("0.9", "0.9 1", "0.9 0.99 0.999"),
    "scale": ("0.5", "0 1", "1 0.5"),
    "ratio": ("0.5", "0 1", "1 0.5"),
    "cutmix_minmax": ("0.5", "0.5 1.5", "0.8 0.2"),
    "lr_noise": ("-0.1 1", "0.9 0.4", "0.1 0.2 0.3"),
    "sched": ("cosin", "nonsense", "0"),
    "decay_milestones": ("0", "20 10", "2.5"),
    "warmup_epochs": ("-1", "2", "9"),
    "start_epoch": ("-1", "2", "9"),
    "stop_epoch": ("0", "3", "-1"),
    "aug_splits": ("-1", "1", "2.5"),
    "train_size_probs": ("0 0", "0.5", "-1 1"),
    "tta": ("3", "-1", "many"),
    "kd_model_name": ("resnet5O", "vit", "0"),
}
FILES = ("pretrained_path", "teacher_path", "initial_checkpoint", "resume", "eval")
VIT = ["--model", "vit_tiny_patch16_224", "--model-kwargs", "depth=2"]
BESIDE = {
    "train_size_probs": ["--train-img-sizes", "16", "24"],
    "train_img_sizes": ["--model-kwargs", *MODEL[4:]],
    "input_size": ["--model-kwargs", *MODEL[4:]],
    "img_size": ["--model-kwargs", *MODEL[4:]],
    "resume": ["--experiment", "run"],
    "teacher_path": ["--convert", "hyena2d", "--convert-stage", "model"],
    "convert_blocks": ["--convert", "hyena2d", *VIT],
    "convert_kwargs": ["--convert", "hyena2d", *VIT],
    "convert_stage": ["--convert", "hyena2d", *VIT],
}


def wrong_values(action) -> tuple[str, ...]:
    if action.dest in OWN:
        return OWN[action.dest]
    if action.choices:
        return ("nonsense", "0", f"{next(iter(action.choices))}x")
    return BY_TYPE.get(getattr(action.type, "__name__", None)) or BY_ACTION[type(action).__name__]


@pytest.mark.parametrize("dest", sorted(ACTIONS.keys() - set(NAMES)))
def test_wrong_values_are_one_line_before_any_data_is_read(dest, capsys, tmp_path):
    if dest == "train_img_sizes":
        pytest.importorskip("timm.data.scheduled_sampler", reason="older timm has no schedule of sizes")
    action = ACTIONS[dest]
    flag = next(name for name in action.option_strings if name.startswith("--"))
    assert len(set(wrong_values(action))) == 3
    for value in wrong_values(action):
        given = value.split()
        if isinstance(action.nargs, int) and len(given) == 1:
            given *= action.nargs
        argv = [*QUICK, "--data-dir", "/no/such/folder", "--output", str(tmp_path), *BESIDE.get(dest, [])]
        with pytest.raises(SystemExit) as stopped:
            train_imagenet.main([*argv, flag, *given])
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert stopped.value.code == (1 if dest in FILES else 2) and len(lines) == 1, lines
        said = re.search("config (.*)" if dest == "config" else rf"argument \S*{flag}\S*: (.*)", lines[0])[1]
        assert any(word in said for word in re.findall(r"[^=\s]+", value) or [value]), lines[0]


def test_what_only_several_flags_together_tell(capsys):
    argv = [*QUICK, "--data-dir", "/no/such/folder"]
    for wrong, fragments in {
        "--pretrained vit.safetensors": ["--pretrained:", "--pretrained-path", "vit.safetensors"],
        "--drop-block 0.1": ["--drop-block", "0.1", "hyena2d_iso_tiny"],
        "--mean 0.5 0.5": ["--mean", "3 values", "0.5"],
        "--sched step --warmup-epochs 2": ["--warmup-epochs", "2 epochs of warm-up", "--epochs 2"],
        "--model inception_v3 --model-kwargs --img-size 32": ["--img-size", "(32, 32)", "refuses images"],
        "--sched wsd": ["--sched", "wsd"],  # its decay is longer than the run
        "--resume /": ["--resume", "folder", "--resume auto"],
    }.items():
        expect_error(capsys, [*argv, *wrong.split()], 1 if "folder" in fragments else 2, *fragments)
    for right in ("--warmup-epochs 2 --sched none", "--warmup-epochs 2 --warmup-prefix", "--aa rand-m9-mstd0.5-inc1"):
        expect_error(capsys, [*argv, *right.split()], 2, "no such folder: /no/such/folder")


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bfloat16_is_said_once(has, monkeypatch, caplog):
    config.has_bfloat16_instructions()  # whatever this machine has
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(config.torch.cpu, name, lambda: has)
    monkeypatch.setattr(config.platform, "machine", lambda: "x86_64")
    config.parse_args(["--device", "cpu", "--amp", "--amp-dtype", "bfloat16"])
    assert ["no bfloat16 instructions" in line for line in caplog.messages] == ([] if has else [True])
