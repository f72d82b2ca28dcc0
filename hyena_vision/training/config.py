"""Arguments of a run, from a YAML file and the command line."""

import argparse
import difflib
import importlib
import importlib.util
import logging
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy
import timm
import timm.optim
import torch
import yaml
from PIL import ImageMode

import hyena_vision
from hyena_vision.data import IMAGE_MODES, target_channels
from hyena_vision.training import arguments
from hyena_vision.training.arguments import Arguments, KeyValues, Parser, create_parser, literal, nearest
from hyena_vision.training.checkpoint_files import find_weights, has_checkpoints, read_checkpoint, read_exported
from hyena_vision.training.errors import ConfigError, UserError, one_line
from hyena_vision.training.optim import create_optimizer, create_scheduler

_logger = logging.getLogger("train")


def parse_args(argv: Sequence[str] | None = None, prog: str = "hyena_vision.train") -> argparse.Namespace:
    """Parse the command line over the YAML file that `-c` names, and check what can be checked without data.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.
        prog: Name of the program in its messages.

    Returns:
        Arguments by timm's names. `device` is one that exists; `trained` holds the settings of the run whose checkpoint
        `--eval` names, which are defaults.

    Raises:
        UserError: A checkpoint does not exist, or that of `--eval` cannot be read.
        SystemExit: Code 2 after one line on stderr that names the wrong argument, key or value.
    """
    parser = create_parser(prog)
    given = vars(parser.parse_args(argv))
    values = _read_yaml(parser, given["config"]) if given["config"] else {}
    weights = given["eval"] or values.get("eval")
    weights = find_weights(weights) if os.path.isdir(weights or "") else weights or ""
    if weights and not os.path.isfile(weights):
        raise UserError(f"argument --eval: no such checkpoint: {weights}")
    trained = _read_trained(parser, weights) if weights else {}
    values = _beneath(given, {**_beneath(values, trained), **values})
    parser.set_defaults(**values)

    # A name already in the namespace keeps argparse from filling in its default: None means "not on the command line".
    args = parser.parse_args(argv, argparse.Namespace(device=None))
    _import_modules(parser, args.device_modules or [])
    args.device = _choose_device(parser, args.device or values.get("device"))
    args.data_dir = args.data_dir or args.data
    args.eval = weights
    if args.resume == "auto" and not (given["experiment"] or given["output"]) and has_checkpoints(args.config):
        args.output, args.experiment = os.path.split(os.path.dirname(os.path.abspath(args.config)))
    args.trained = trained
    try:
        _check(parser, args)
    except ConfigError as error:
        parser.error(str(error))
    return args


def trained_args(path: str) -> argparse.Namespace:
    """Return the arguments of the run that wrote a checkpoint as `--eval` has them, on the CPU, nothing checked.

    Raises:
        UserError: The checkpoint cannot be read.
        SystemExit: Code 2, as `parse_args` ends, for arguments in it that are none.
    """
    parser = create_parser()
    trained = _read_trained(parser, path)
    parser.set_defaults(**trained)
    args = parser.parse_args(["--eval", path, "--device", "cpu"])
    args.trained = trained
    return args


def dump_args(args: Arguments, **recorded: Any) -> str:
    """Return the arguments as YAML that `-c` reads back, under a comment with the versions that the run used.

    What was left open stays so: the run that reads it finds it anew, as it does the place from which it goes on.

    Args:
        args: Arguments of the run.
        **recorded: What is not to be given, and is recorded.
    """
    versions = [f"{module.__name__} {module.__version__}" for module in (hyena_vision, timm, torch, numpy)]
    of_one_start = {"data", "local_rank", "no_resume_opt", "resume_force", "start_epoch"}
    known = set(_actions(create_parser())) - of_one_start
    values = {name: value for name, value in {**vars(args), **recorded}.items() if name in known}
    if args.distributed:
        values["device"] = args.device.split(":")[0]  # each process has another one
    return f"# {', '.join(versions)}, python {platform.python_version()}\n{yaml.safe_dump(values)}"


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}


def _read_yaml(parser: Parser, path: str) -> dict[str, Any]:
    """Return the values of a YAML file by argument name, converted by the type of each argument."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except OSError as error:
        parser.error(f"cannot read config {path}: {error.strerror}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"config {path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(values, dict):
        parser.error(f"config {path} must hold `name: value` pairs, got a {type(values).__name__}")

    names, actions = {key: str(key).replace("-", "_") for key in values}, _actions(parser)
    for key, name in names.items():
        if name not in {*actions, "config", *arguments.RENAMED, *arguments.RETIRED}:
            match = difflib.get_close_matches(name, actions, n=1, cutoff=0.0)[0]
            parser.error(f"config {path}: unknown key {key!r} (nearest: {match})")
    return _convert_all(parser, f"config {path}", {names[key]: value for key, value in values.items()})


def _read_trained(parser: Parser, path: str) -> dict[str, Any]:
    """Return the settings of the run that wrote a checkpoint, as far as they are for validating it elsewhere.

    Of an exported model they are those of config.json beside it, and of args.yaml for what that does not say.
    """
    checkpoint = read_checkpoint(path)
    values = checkpoint.get("args")
    values = vars(values) if isinstance(values, argparse.Namespace) else values
    folder = os.path.dirname(path)
    if isinstance(values, dict):
        values = dict(values)
        values["num_classes"] = values.get("num_classes") or checkpoint.get("num_classes")
    elif os.path.isfile(exported := os.path.join(folder, "config.json")):
        settings = os.path.join(folder, "args.yaml")
        values = _read_yaml(parser, settings) if os.path.isfile(settings) else {}
        values = {name: value for name, value in values.items() if name not in ("img_size", "input_size", "in_chans")}
        values |= _read_exported(exported)
    else:
        return {}
    known = {*_actions(parser), *arguments.RENAMED} - arguments.NOT_FROM_CHECKPOINT
    return _convert_all(parser, f"checkpoint {path}", {key: values[key] for key in known & set(values)})


def _read_exported(path: str) -> dict[str, Any]:
    """Return what config.json of an exported model says, by the names of the arguments."""
    model, kwargs, data, reading = read_exported(path)
    of_flags = {name: kwargs.pop(name, None) for name in ("num_classes", "in_chans")}
    classes = of_flags["num_classes"] or data.get("num_classes")
    names = ("input_size", "mean", "std", "interpolation", "crop_pct")
    own = {name: data[name] for name in names if data.get(name) is not None}
    if data.get("crop_mode"):
        own["pretrained_cfg_overlay"] = {"crop_mode": data["crop_mode"]}
    return {"model": model, "model_kwargs": kwargs, "num_classes": classes, **own, **reading}


def _beneath(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """Return `lower` without what `upper` overrides under another name."""
    lower = dict(lower)
    if upper.get("img_size") and not upper.get("input_size") and lower.get("input_size"):
        channels = lower.pop("input_size")[0]
        lower["in_chans"] = lower.get("in_chans") or channels
    if upper.get("data") and not upper.get("data_dir"):
        lower.pop("data_dir", None)
    return lower


def _convert_all(parser: Parser, source: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return known values by the names of today, converted by the type of each argument."""
    actions, converted, renamed = _actions(parser), {}, {}
    for key, value in values.items():
        if value and value != arguments.RETIRED.get(key, value):
            _warn(f"{source}: {key}: {value!r} has no effect: timm has retired it.")
        name = arguments.RENAMED.get(key, key) if value else key
        if name not in actions:
            continue
        try:
            (converted if key == name else renamed)[name] = _convert(actions[name], value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"{source}: {key}: {error}")
    return converted | renamed


def _convert(action: argparse.Action, value: Any) -> Any:
    """Return a YAML value as the type of an argument; raises ValueError for one that does not fit."""
    if value is None:
        if action.default not in (None, [], {}):
            raise ValueError("must not be empty")
        return action.default
    if action.nargs == 0:  # a flag; YAML gives the string for "false" in quotes, which would count as true
        flag = {"true": True, "false": False}.get(str(value).lower())
        if flag is None:
            raise ValueError(f"must be true or false, got {value!r}")
        return flag
    if isinstance(action, KeyValues):
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping of names to values, got {value!r}")
        return {str(name): _literal(item) for name, item in value.items()}
    if action.nargs in ("+", "*") or isinstance(action.nargs, int):
        items = list(value) if isinstance(value, list | tuple) else [value]
        if isinstance(action.nargs, int) and len(items) != action.nargs:
            raise ValueError(f"must be a list of {action.nargs} values, got {value!r}")
        if not items and action.default:
            raise ValueError("must be a list of at least one value")
        return [_scalar(action, item) for item in items] or action.default
    if action.nargs == "?" and value is True:
        return action.const
    return _scalar(action, value)


def _scalar(action: argparse.Action, value: Any) -> Any:
    kind = action.type or str
    if isinstance(value, bool | list | dict) or value is None:
        raise ValueError(f"must be {_article(kind)}, got {value!r}")
    try:
        converted = kind(str(value))
    except ValueError:
        raise ValueError(f"must be {_article(kind)}, got {value!r}") from None
    if action.choices and converted not in action.choices and converted != action.default:
        raise ValueError(f"must be one of {', '.join(map(str, action.choices))}, got {value!r}")
    return converted


def _article(kind: Any) -> str:
    kind = getattr(kind, "__annotations__", {}).get("return", kind)
    return {float: "a number", str: "a string"}.get(kind, "an integer")


def _literal(value: Any) -> Any:
    """Return a nested value, with strings that are Python literals (`3e-4` is a string in YAML) evaluated."""
    if isinstance(value, dict):
        return {str(name): _literal(item) for name, item in value.items()}
    return literal(value) if isinstance(value, str) else value


def _warn(message: str) -> None:
    """Log a warning, once for all processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        _logger.warning(message)


def _import_modules(parser: Parser, names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # what a module does when it is imported is its own
            parser.error(f"argument --device-modules: cannot import {name!r}: {one_line(error)}")


def _choose_device(parser: Parser, device: str | None) -> str:
    """Return the device that was asked for, or CUDA where it exists and the CPU where it does not."""
    if device is None and not torch.cuda.is_available():
        _warn("No CUDA device found: training on the CPU. Pass --device cpu to silence this.")
        return "cpu"
    device = device or parser.get_default("device")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        parser.error(f"argument --device: unknown device {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error(f"argument --device: {device} was asked for, and no CUDA device is available")
    return device


def _check(parser: Parser, args: argparse.Namespace) -> None:
    """Stop on values and combinations of arguments that cannot run, as far as their types do not tell."""

    def stop(name: str, message: str) -> NoReturn:
        parser.error(f"argument --{name}: {message}")

    for name, reason in arguments.LEFT_OUT.items():
        if given := getattr(args, name):
            stop(name.replace("_", "-"), f"is left out, got {given}: {reason}")
    if args.tta not in (0, 1, 2):
        reason = "timm's trainer averages neighbouring images, which no loader of timm repeats"
        stop("tta", f"expected 0 or 1 (none) or 2 (the image and its mirror image), got {args.tta}; {reason}")
    if args.amp and args.amp_dtype == "float16" and torch.device(args.device).type == "cpu":
        stop("amp", "float16 needs a CUDA device; on the CPU use --amp-dtype bfloat16")
    if args.amp and args.model_dtype not in (None, "float32"):
        stop("amp", f"needs a float32 model, got --model-dtype {args.model_dtype}")
    if args.amp and torch.device(args.device).type == "cpu" and not has_bfloat16_instructions():
        _warn("--amp: this CPU has no bfloat16 instructions; training may be many times slower than without it.")
    if args.eval and args.resume:
        stop("eval", f"validates and trains nothing; expected no --resume, got {args.resume}")
    if args.torchcompile and args.torchcompile not in (backends := torch._dynamo.list_backends(exclude_tags=())):
        stop("torchcompile", f"unknown backend {args.torchcompile!r}{nearest(args.torchcompile, backends)}")
    _check_channels(args, stop)
    _check_pictures(args, stop)
    _check_files(args, stop)
    if not args.eval:
        _check_training(args, stop)
        _say_what_no_aug_ends(args)
        _check_conversion(args, stop)
        _check_optimization(args, stop)


def _say_what_no_aug_ends(args: argparse.Namespace) -> None:
    """Warn of augmentations that were asked for together with --no-aug, which wins, as in timm."""
    names = ["train-crop-mode", "scale", "ratio", "hflip", "vflip", "color-jitter", "color-jitter-prob"]
    names += ["grayscale-prob", "gaussian-blur-prob", "aa", "reprob", "train-interpolation"]
    defaults, lost = create_parser(), []  # those of this run's parser are the values of its file
    for name in names if args.no_aug else []:
        given = getattr(args, dest := name.replace("-", "_"))
        if given and given != defaults.get_default(dest):
            lost.append(f"--{name} {given}")
    if lost:
        _warn(f"Without effect, because of --no-aug: {', '.join(lost)}.")


def has_bfloat16_instructions() -> bool:
    """Return whether the CPU computes with bfloat16; True where torch does not know."""
    try:
        if platform.machine().lower() in ("x86_64", "amd64"):
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:
        return True


def _check_channels(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    """Stop where images have another number of channels than the model takes."""
    name = "in-chans" if args.in_chans else "input-size"
    channels = args.in_chans or (args.input_size[0] if args.input_size else args.model_kwargs.get("in_chans", 3))
    if not args.input_img_mode:
        if channels not in IMAGE_MODES:
            stop(name, f"expected 1, 3 or 4 channels, got {channels}; other images need their --input-img-mode")
        return
    try:
        bands = len(ImageMode.getmode(args.input_img_mode).bands)
    except KeyError:
        stop("input-img-mode", f"expected a mode of Pillow, such as L, RGB or RGBA, got {args.input_img_mode!r}")
    if bands != channels:
        stop(
            "input-img-mode", f"expected {channels} channels, as the model takes, got {args.input_img_mode} of {bands}"
        )


def _check_pictures(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    """Stop on flags that are for classes where the targets are pictures."""
    channels = target_channels(args.dataset)
    if channels is None:
        return
    names = ["mixup", "cutmix", "cutmix-minmax", "bce-loss", "jsd-loss", "aug-splits", "kd-model-name", "convert"]
    names += ["class-weights", "balanced-sampler", "class-map"]
    for name in [] if args.eval else names:
        if given := getattr(args, name.replace("-", "_")):
            stop(name, f"is for classes, got {given} with {args.dataset}, whose targets are pictures")
    if args.eval_metric == "top5":
        stop("eval-metric", f"{args.dataset} has pictures for targets, whose metric is the loss, got top5")
    if args.tta > 1:
        stop("tta", f"expected none with {args.dataset}, whose targets a mirror image does not have, got {args.tta}")
    if args.eval and args.output:
        stop("output", f"is for predictions of classes, got {args.output} with {args.dataset}")
    given = args.num_classes or args.model_kwargs.get("num_classes", channels)
    if given != channels:
        stop("num-classes", f"the pictures of {args.dataset} have {channels} channels, got {given}")


def _check_files(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    """Stop at a checkpoint that does not exist; what is in one is looked at when it is read."""
    if args.pretrained and args.data and args.data.endswith((".safetensors", ".pth", ".pt", ".bin", ".tar")):
        stop("pretrained", f"takes no file; the flag for one is --pretrained-path, got {args.data}")
    for name in ("resume", "initial-checkpoint", "pretrained-path", "teacher-path"):
        path = getattr(args, name.replace("-", "_"))
        if path and os.path.isdir(path):
            hint = " (--resume auto with --experiment takes the newest)" if name == "resume" else ""
            raise UserError(f"argument --{name}: expected a file, got the folder {path}{hint}")
        if path and path != "auto" and not os.path.isfile(path):
            raise UserError(f"argument --{name}: no such checkpoint: {path}")


def _check_optimization(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    """Stop on what optimizer or schedule refuse, and on schedules that train nothing."""
    optimizer, optimizers = args.opt.lower().split("_")[-1], timm.optim.list_optimizers()
    if optimizer not in optimizers:
        stop("opt", f"unknown optimizer {args.opt!r}{nearest(optimizer, optimizers)}")
    info = timm.optim.get_optimizer_info(optimizer)
    if args.opt_betas and info.has_betas and len(args.opt_betas) != info.num_betas:
        stop("opt-betas", f"expected {info.num_betas} values for {args.opt}, got {args.opt_betas}")
    if args.sched != "none" and args.warmup_epochs >= args.epochs and not args.warmup_prefix:
        message = f"{args.warmup_epochs} epochs of warm-up leave none of --epochs {args.epochs}"
        if not args.resume:
            stop("warmup-epochs", f"expected fewer than --epochs: {message}")
        _warn(f"--warmup-epochs: {message}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again
        of_one_layer = argparse.Namespace(**{**vars(args), "layer_decay": None})
        tried = create_optimizer(of_one_layer, torch.nn.Linear(2, 2), args.lr or args.lr_base)
        epochs = create_scheduler(args, tried, 1, False)[1]
    if args.start_epoch is not None and args.start_epoch >= min(epochs, args.stop_epoch or epochs):
        stop(
            "start-epoch",
            f"expected less than the {min(epochs, args.stop_epoch or epochs)} epochs of the run, "
            f"got {args.start_epoch}",
        )


def _check_conversion(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    """Stop on flags of a conversion that do not go together, or that would have no effect."""
    if args.convert is None:
        for name in ("convert-stage", "convert-kwargs", "convert-blocks"):
            given = getattr(args, name.replace("-", "_"))
            if given and given != ["all"]:
                stop(name, f"needs --convert, got {given} without it")
    if args.convert_stage is None:
        for name in ("teacher-path", "unlabelled"):
            if given := getattr(args, name.replace("-", "_")):
                stop(name, f"needs --convert-stage, got {given} without it")
        return
    if not (args.teacher_path or args.pretrained):
        stop(
            "convert-stage",
            f"{args.convert_stage} needs the teacher's weights: --teacher-path, or --pretrained: timm's",
        )
    for name in ("kd-model-name", "fsdp", "bce-loss", "jsd-loss", "class-weights"):
        if given := getattr(args, name.replace("-", "_")):
            stop(name, f"does not go with --convert-stage, got {given}")
    if args.convert_stage == "mixers":
        for name in ("pretrained-path", "initial-checkpoint", "model-ema", "grad-checkpointing", "task-loss-weight"):
            if given := getattr(args, name.replace("-", "_")):
                stop(name, f"is for --convert-stage model: mixers begin with the teacher's weights; got {given}")
    if args.unlabelled:
        for name in ("model-ema", "task-loss-weight", "class-map", "balanced-sampler"):
            if given := getattr(args, name.replace("-", "_")):
                stop(name, f"needs labels, got --unlabelled and {given}")


def _check_training(args: argparse.Namespace, stop: Callable[[str, str], NoReturn]) -> None:
    mixup = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax
    batch_flag = "train-batch-sizes" if args.train_batch_sizes else "batch-size"
    odd = [size for size in args.train_batch_sizes or [args.batch_size] if size % 2]
    sizes, probs = args.train_img_sizes or [], args.train_size_probs
    if odd and (mixup or (args.split_bn and not args.aug_splits)):
        stop(batch_flag, f"mixup, cutmix and --split-bn need an even number, got {odd[0]}")
    if args.resume == "auto" and not args.experiment:
        stop("resume", "auto needs --experiment, the name of the run to continue")
    for name, fewest in (("scale", 2), ("ratio", 2), ("cutmix-minmax", 2), ("lr-noise", 1)):
        given = getattr(args, name.replace("-", "_"))
        if given and (not fewest <= len(given) <= 2 or sorted(given) != given):
            stop(name, f"expected {'one or ' if fewest == 1 else ''}two numbers in ascending order, got {given}")
    if sorted(set(args.decay_milestones)) != args.decay_milestones:
        stop("decay-milestones", f"expected ascending epochs, got {args.decay_milestones}")
    if args.kd_model_name and ":" not in args.kd_model_name and not timm.is_model(args.kd_model_name):
        near = nearest(args.kd_model_name, timm.list_models())
        stop("kd-model-name", f"unknown model {args.kd_model_name!r}{near}")
    if args.stop_epoch and args.stop_epoch > args.epochs:
        stop("stop-epoch", f"expected 1 to {args.epochs}, the number of --epochs, got {args.stop_epoch}")

    if args.aug_splits == 1:
        stop("aug-splits", "expected 0 or at least 2, got 1")
    if args.jsd_loss and not args.aug_splits:
        stop("jsd-loss", "needs --aug-splits of at least 2, got 0")
    if args.jsd_loss and args.bce_loss:
        stop("jsd-loss", "expected one loss, got --bce-loss as well")
    if args.aug_splits and mixup:
        stop("aug-splits", f"expected no mixup or cutmix with it, got --mixup {args.mixup} --cutmix {args.cutmix}")
    if args.aug_splits and args.no_prefetcher:  # without it timm's loader gives a list of the splits, not one batch
        stop("aug-splits", "needs the prefetcher, got --no-prefetcher")
    if args.split_bn and not (args.aug_splits or args.resplit):
        stop("split-bn", "needs --aug-splits of at least 2 or --resplit, got neither")
    if args.split_bn and args.sync_bn:
        stop("split-bn", "expected one kind of batch norm, got --sync-bn as well")

    if args.class_weights and (args.bce_loss or args.jsd_loss):
        stop("class-weights", f"is for softmax cross entropy, got --{'bce' if args.bce_loss else 'jsd'}-loss")
    if args.class_weights and args.balanced_sampler:
        stop("class-weights", "makes up for unequal classes, and so does --balanced-sampler; expected one of them")
    if args.balanced_sampler and (args.aug_repeats or sizes):
        stop("balanced-sampler", "draws the images itself, expected no --aug-repeats and no --train-img-sizes")

    for name in ("train-batch-sizes", "train-size-probs"):
        given = getattr(args, name.replace("-", "_"))
        if given and len(given) != len(sizes):
            stop(name, f"expected {len(sizes)} values, one for each of --train-img-sizes, got {len(given)}: {given}")
    if args.train_size_schedule == "progressive" and len(sizes) < 2:
        stop("train-size-schedule", f"progressive needs at least two --train-img-sizes, got {len(sizes)}")
    if probs and not sum(probs):
        stop("train-size-probs", f"expected numbers of which not all are 0, got {probs}")
    if sizes and args.aug_splits:
        stop("train-img-sizes", f"expected no --aug-splits with several sizes, got {args.aug_splits}")
    if sizes and importlib.util.find_spec("timm.data.scheduled_sampler") is None:
        stop("train-img-sizes", f"needs timm 1.0.29 or newer, this is timm {timm.__version__}")

    if args.fsdp and "float16" in (args.amp and args.amp_dtype, args.model_dtype):
        stop("fsdp", "expected bfloat16 or float32, got float16 (--amp-dtype or --model-dtype)")
    if args.fsdp and args.model_ema_force_cpu:
        stop("fsdp", "expected the moving average on the device, got --model-ema-force-cpu")
    if args.wandb_resume_id and not args.resume:
        stop("wandb-resume-id", f"needs --resume, got {args.wandb_resume_id} without it")
    for package in ("wandb", "tensorboard"):
        spec = importlib.util.find_spec(package)  # one without origin is a folder of logs, named like its package
        if getattr(args, f"log_{package}") and not (spec and spec.origin):
            stop(f"log-{package}", f'needs the package {package}, which is missing: pip install "hyena-vision[log]"')
