"""Arguments of a run, from a YAML file and the command line."""

import argparse
import ast
import difflib
import logging
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy
import timm
import timm.optim
import torch
import yaml

import hyena_vision
from hyena_vision.training.arguments import KeyValues, Parser, create_parser, nearest

_logger = logging.getLogger("train")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the YAML file that `-c` names, and check what can be checked without data.

    Args:
        argv: Arguments without the program's name; None takes `sys.argv`.

    Returns:
        Arguments by timm's names. `device` is one that exists.

    Raises:
        SystemExit: Code 2 after one line on stderr that names the wrong argument, key or value.
    """
    parser = create_parser()
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("-c", "--config")
    path = config.parse_known_args(argv)[0].config
    values = _read_yaml(parser, path) if path else {}
    parser.set_defaults(**values)

    # A name already in the namespace keeps argparse from filling in its default: None means "not on the command line".
    args = parser.parse_args(argv, argparse.Namespace(device=None))
    args.device = _choose_device(parser, args.device or values.get("device"))
    args.data_dir = args.data_dir or args.data
    _check(parser, args)
    return args


def dump_args(args: argparse.Namespace) -> str:
    """Return the arguments as YAML that `-c` reads back, under a comment with the versions that the run used."""
    versions = {
        "hyena_vision": hyena_vision.__version__,
        "timm": timm.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
    known = set(_actions(create_parser())) - {"data"}
    values = {name: value for name, value in vars(args).items() if name in known}
    return f"# {', '.join(f'{k} {v}' for k, v in versions.items())}\n{yaml.safe_dump(values)}"


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

    actions = _actions(parser)
    converted = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            match = difflib.get_close_matches(name, actions, n=1, cutoff=0.0)[0]
            parser.error(f"config {path}: unknown key {key!r} (nearest: {match})")
        try:
            converted[name] = _convert(actions[name], value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"config {path}: {key}: {error}")
    return converted


def _convert(action: argparse.Action, value: Any) -> Any:
    """Return a YAML value as the type of an argument; raises ValueError for one that does not fit."""
    if value is None:
        if action.default is not None:
            raise ValueError("must not be empty")
        return None
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
        items = value if isinstance(value, list) else [value]
        if isinstance(action.nargs, int) and len(items) != action.nargs:
            raise ValueError(f"must be a list of {action.nargs} values, got {value!r}")
        if not items:
            raise ValueError("must be a list of at least one value")
        return [_scalar(action, item) for item in items]
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
    return {float: "a number", str: "a string"}.get(kind, "an integer")


def _literal(value: Any) -> Any:
    """Return a nested value, with strings that are Python literals (`3e-4` is a string in YAML) evaluated."""
    if isinstance(value, dict):
        return {str(name): _literal(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _choose_device(parser: Parser, device: str | None) -> str:
    """Return the device that was asked for, or CUDA where it exists and the CPU where it does not."""
    if device is None and not torch.cuda.is_available():
        if int(os.environ.get("RANK", 0)) == 0:
            _logger.warning("No CUDA device found: training on the CPU. Pass --device cpu to silence this.")
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
    """Stop on combinations of arguments that cannot run."""
    if args.amp and args.amp_dtype == "float16" and torch.device(args.device).type == "cpu":
        parser.error("argument --amp: float16 needs a CUDA device; on the CPU use --amp-dtype bfloat16")
    if args.amp and args.model_dtype not in (None, "float32"):
        parser.error(f"argument --amp: needs a float32 model, got --model-dtype {args.model_dtype}")
    if (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax) and args.batch_size % 2:
        parser.error(f"argument --batch-size: mixup and cutmix need an even number, got {args.batch_size}")
    if not 0 <= args.smoothing < 1:
        parser.error(f"argument --smoothing: must be at least 0 and below 1, got {args.smoothing}")
    if args.resume == "auto" and not args.experiment:
        parser.error("argument --resume: auto needs --experiment, the name of the run to continue")
    for name in ("scale", "ratio"):
        if len(getattr(args, name)) != 2:
            parser.error(f"argument --{name}: expected two numbers, got {getattr(args, name)}")
    optimizer = args.opt.lower().split("_")[-1]
    optimizers = timm.optim.list_optimizers()
    if optimizer not in optimizers:
        parser.error(f"argument --opt: unknown optimizer {args.opt!r}{nearest(optimizer, optimizers)}")
