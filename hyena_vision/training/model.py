"""The model of a run, from its arguments."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm, to_2tuple
from torch import nn

from hyena_vision.data import target_channels
from hyena_vision.layers import Hyena2d
from hyena_vision.models import DensePredictor, replace_attention
from hyena_vision.models.replace import fit_weights
from hyena_vision.training.arguments import Arguments, literal, nearest
from hyena_vision.training.checkpoint_files import (
    fit,
    load_weights,
    read_checkpoint,
    read_exported,
    reason,
    unwrap_names,
    weights_of,
)
from hyena_vision.training.errors import ConfigError, UserError, one_line
from hyena_vision.training.freeze import count_parameters, freeze
from hyena_vision.training.meta import meta_device

_logger = logging.getLogger("train")


def create_model(args: Arguments) -> torch.nn.Module:
    """Create the model that the arguments describe, with its weights, on the CPU.

    Args:
        args: Arguments of the run.

    Raises:
        ConfigError: Unknown model, or arguments that it refuses.
        UserError: Weights that cannot be read or do not fit; the message names the file.
    """
    if args.fast_norm:
        set_fast_norm()
    weights: dict[str, torch.Tensor] = {}
    if args.convert_stage and not args.eval:
        model = _create_student(args)
    elif args.pretrained or args.pretrained_path:
        model, weights = _create_pretrained(args)
    else:
        model = _create(args, dict(args.pretrained_cfg_overlay), pretrained=False)
    if args.convert and args.pretrained_path and not args.eval:
        _check_settings_of_mixers(args, model)

    if args.eval:
        _resize(args, model, args.trained.get("img_size"), args.trained.get("input_size"))
        load_weights(model, args.eval, f" (--model {args.model}; config.json beside a file of weights says which)")
    if args.eval or args.convert or "img_size" not in args.model_kwargs:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        _resize(args, model, args.img_size, args.input_size)
        for name, value in model.state_dict().items():  # positions that fit are not to be resampled there and back
            if value.shape != shapes.get(name) and value.shape == getattr(weights.get(name), "shape", None):
                value.copy_(weights[name])
    before, size = _trained_size(args, model), data_config(args, model)["input_size"]
    if before and (advice := _dilation_for(model, before[1:], size[1:])):
        _logger.info(
            f"Images are of {size[1:]} pixels and the weights of {before[1:]}, and short filters count tokens: "
            f"{advice} among --model-kwargs keeps them where they were in the image."
        )
    if args.initial_checkpoint:
        of_a_run = " Its optimizer is not used: --resume would go on with that run."
        other = before not in (None, size)
        if other:
            _resize(args, model, input_size=before)
        load_weights(model, args.initial_checkpoint, " (--pretrained-path adapts head and channels)", of_a_run)
        if other:
            own = args.model_kwargs.get("img_size")  # which stays that of the model
            _resize(args, model, img_size=own, input_size=None if own else size)
    with torch.no_grad():
        for layer in [] if args.eval else _last_layers(model):
            if args.head_init_scale is not None:
                layer.weight.mul_(args.head_init_scale)
                layer.bias.mul_(args.head_init_scale)
            if args.head_init_bias is not None:
                nn.init.constant_(layer.bias, args.head_init_bias)
    if args.freeze and not args.eval:
        frozen = freeze(model, args.freeze)
        _logger.info(f"Frozen: {frozen:,} of {count_parameters(model):,} parameters ({' '.join(args.freeze)}).")
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


def _trained_size(args: Arguments, model: nn.Module) -> tuple[int, int, int] | None:
    """Return the input size (C, H, W) that given weights of a run were trained with, or None where they do not tell."""
    path = args.initial_checkpoint
    if args.eval:
        saved = args.trained
    elif path.endswith(".safetensors"):
        config = os.path.join(os.path.dirname(path), "config.json")
        saved = read_exported(config)[2] if os.path.isfile(config) else {}
    else:
        saved = read_checkpoint(path).get("args") if path else {}
    if not saved or not isinstance(saved, dict):
        return None
    if saved.get("input_size") or path.endswith(".safetensors"):
        return tuple(saved.get("input_size", ())) or None
    names = {"img_size": None, "input_size": None, "model_kwargs": {}}
    own = {name: saved.get(name) or default for name, default in names.items()}
    return data_config(Arguments(**{**vars(args), **own}), model)["input_size"]


def _dilation_for(model: nn.Module, before: tuple[int, ...], now: tuple[int, ...]) -> str:
    """Return the argument with which short filters reach as far in larger images; nothing where that is as it is."""
    filters = [layer.short_filter for layer in model.modules() if isinstance(layer, Hyena2d)]
    counts_tokens = any(conv.kernel_size != (1, 1) and conv.dilation == (1, 1) for conv in filters)
    dilation = tuple(max(round(n / then), 1) for n, then in zip(now, before, strict=True))
    if dilation == (1, 1) or not counts_tokens:
        return ""
    return f"short_dilation={dilation[0] if len(set(dilation)) == 1 else dilation}"


def create_teacher(args: Arguments, num_classes: int | None) -> nn.Module:
    """Create the model whose attention is replaced, with its weights, for images of the run's size, on the CPU.

    Args:
        args: Arguments of the run, with `convert_stage`.
        num_classes: Its classes, which are those of the student; None for the model's own number.

    Raises:
        UserError: Weights that cannot be read or are of another model, its head included.
    """
    args = Arguments(**{**vars(args), "convert": None, "pretrained_path": None, "num_classes": num_classes})
    if not args.teacher_path:
        model, _ = _create_pretrained(args)
        classes = (model.pretrained_cfg or {}).get("num_classes")
        if classes != model.num_classes:
            raise UserError(
                f"the teacher must have the classes of the run: the pretrained weights of {args.model} have {classes}, "
                f"the run has {model.num_classes}; fine-tune it first, and give that as --teacher-path"
            )
    else:
        model = _create(args, dict(args.pretrained_cfg_overlay), pretrained=False)
    _resize(args, model, args.img_size, args.input_size)
    if args.teacher_path:
        hint = f" (a teacher is a --model {args.model} with a head of {model.num_classes} classes)"
        load_weights(model, args.teacher_path, hint, adapt=partial(fit_weights, model=model))
    return model.eval()


def _create_student(args: Arguments) -> nn.Module:
    """Create the teacher and put mixers in place of its attention, which stays with the model for the first stage."""
    with meta_device():
        # By the size of images that positions of the filters are relative to; --img-size may be another
        of_teacher = Arguments(**{**vars(args), "convert": None})
        grid = _create(of_teacher, dict(args.pretrained_cfg_overlay), pretrained=False).patch_embed.grid_size
    model = create_teacher(args, args.num_classes)
    report = replace_attention(model, **{"base_grid": list(grid), **_replacement(args)})
    _logger.info(report)
    if args.pretrained_path:
        hint = f" (it must be of the stage before, {args.convert} in the same blocks)"
        load_weights(model, args.pretrained_path, hint, adapt=partial(fit_weights, model=model))
    return model


def _check_settings_of_mixers(args: Arguments, model: nn.Module) -> None:
    """Refuse weights of mixers with other settings, which may fit and mean something else (another `base_grid`)."""
    path = args.pretrained_path
    config = os.path.join(os.path.dirname(path), "config.json")
    if path.endswith(".safetensors"):
        own = {"replace": model_arguments(args, model)["replace"]}
        saved = read_exported(config)[1] if os.path.isfile(config) else {}
    else:
        own, saved = _filter_settings(vars(args)), read_checkpoint(path).get("args")
        saved = _filter_settings(saved) if isinstance(saved, dict) and saved.get("convert") else {}
    if changed := [
        f"{name} {saved[name]} (now {own[name]})" for name in own.keys() & saved if saved[name] != own[name]
    ]:
        raise UserError(
            f"argument --pretrained-path: {path} was converted with other settings: {', '.join(sorted(changed))}; "
            "another size of images is --img-size"
        )


def _filter_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a run's settings that say what filters mean."""
    kwargs = settings["model_kwargs"]
    grid = {f"model_kwargs {name}": kwargs.get(name) for name in ("img_size", "patch_size")}
    return {"model": settings["model"].split(".")[0], "convert_kwargs": settings["convert_kwargs"], **grid}


def _replacement(args: Arguments) -> dict[str, Any]:
    """Return the arguments of `replace_attention`."""
    words = [literal(word) for word in args.convert_blocks]
    blocks = words if all(isinstance(word, int) for word in words) else " ".join(map(str, words))
    return {"mixer": args.convert, "blocks": blocks, **args.convert_kwargs}


def model_arguments(args: Arguments, model: nn.Module) -> dict[str, Any]:
    """Return the arguments that make the model again, beside the name of its architecture and what flags give."""
    if target_channels(args.dataset):
        return args.model_kwargs if args.model == "hyena_dense" else {**args.model_kwargs, "backbone": args.model}
    if not args.convert:
        return args.model_kwargs
    size = {"img_size": list(model.patch_embed.img_size)} if "img_size" in args.model_kwargs else {}
    return {**args.model_kwargs, **size, "base": model.base, "replace": model.replacements}


def _create_pretrained(args: Arguments) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Create the model with its pretrained weights, or those of a file, which are returned, too.

    What fits next to nothing is refused.
    """
    path, overlay = args.pretrained_path, dict(args.pretrained_cfg_overlay)
    weights, own = {}, {}
    if path:
        try:
            with meta_device():
                own = _create(args, overlay, pretrained=False).state_dict()
        except RuntimeError:
            pass  # it cannot be made without weights
        weights = unwrap_names(weights_of(read_checkpoint(path)), own)
        overlay |= {"state_dict": weights, "num_classes": -1}  # -1: adapt the head
    try:
        with _noted_loading() as loaded:
            model = _create(args, overlay, pretrained=True)
    except UserError as error:
        raise UserError(f"{error} ({fit(weights, own)})" if own else str(error)) from error
    model.pretrained_cfg.pop("state_dict", None)
    count, total = _count_loaded(model, loaded), len(model.state_dict())
    message = f"{count} of {total} tensors of {args.model} are in {path or 'its pretrained weights'}"
    if count < total / 10:
        raise UserError(f"{message}; expected those of the same or a similar model")
    _logger.info(f"{message}.")
    return model, weights


def _count_loaded(model: nn.Module, loaded: list[tuple[nn.Module, list[str]]]) -> int:
    """Count the tensors of a model that were loaded, where loading was noted: into all of it, or into a part."""
    names = {module: f"{name}." if name else "" for name, module in model.named_modules()}
    noted = {names[module]: missing for module, missing in loaded if module in names}
    part = min(noted, key=len, default="")
    lacking = {f"{part}{name}" for name in noted.get(part, ())}
    return sum(name.startswith(part) and name not in lacking for name in model.state_dict())


@contextlib.contextmanager
def _noted_loading() -> Iterator[list[tuple[nn.Module, list[str]]]]:
    """Note what each model lacks that is loaded meanwhile: timm goes on without a word where nothing fits."""
    load, loaded = nn.Module.load_state_dict, []

    def load_and_note(self, *args, **kwargs):
        result = load(self, *args, **kwargs)
        loaded.append((self, result.missing_keys))
        return result

    nn.Module.load_state_dict = load_and_note
    try:
        yield loaded
    finally:
        nn.Module.load_state_dict = load


def check_model(args: Arguments) -> None:
    """Refuse a model, its arguments or an image size before any data is read and without making weights.

    Args:
        args: Arguments of the run.

    Raises:
        ConfigError: The model does not exist, or refuses something; the message names the flag.
    """
    try:
        with meta_device(), torch.no_grad():
            model = _create(args, dict(args.pretrained_cfg_overlay), pretrained=False).eval()
            if args.eval:
                _resize(args, model, args.trained.get("img_size"), args.trained.get("input_size"))
            if args.eval or args.convert or "img_size" not in args.model_kwargs:
                _resize(args, model, args.img_size, args.input_size)
            if args.freeze and not args.eval:
                freeze(model, args.freeze)
            channels, *size = data_config(args, model)["input_size"]
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                return  # step by step and without values they take many seconds
            for height, width in [size, *((side, side) for side in args.train_img_sizes or ())]:
                _try_size(args, model, torch.zeros(1, channels, height, width))
    except (NotImplementedError, RuntimeError):
        return  # it cannot be made without weights; what is wrong with it is found when it is made with them


def _try_size(args: Arguments, model: nn.Module, images: torch.Tensor) -> None:
    """Run the model on images without values."""
    size = tuple(images.shape[2:])
    try:
        model(images)
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            raise  # an operator that cannot be run without values
        flags = ("train_img_sizes", "img_size", "input_size", "model_kwargs")
        flag = next((name for name in flags if getattr(args, name) and _holds(getattr(args, name), size)), "img_size")
        raise ConfigError(
            f"argument --{flag.replace('_', '-')}: model {args.model} refuses images of {size}: {one_line(error)}"
        ) from error


def _holds(value: Any, size: tuple[int, int]) -> bool:
    """Return whether an image size is given by a value."""
    value = value.get("img_size", 0) if isinstance(value, dict) else value
    return size[1] == value or (not isinstance(value, int) and size[1] in value)


def _create(args: Arguments, overlay: dict[str, Any], pretrained: bool) -> nn.Module:
    """Create the model as timm does, with what it refuses said in one line that names the flag."""
    if ":" not in args.model and not timm.is_model(args.model):
        near = nearest(args.model, timm.list_models(), count=3)
        raise ConfigError(f"argument --model: unknown model {args.model!r}{near}")
    if args.model.startswith("local-dir:") and not os.path.isdir(args.model.removeprefix("local-dir:")):
        raise ConfigError(f"argument --model: no such folder: {args.model}")
    given = {
        "in_chans": ("in-chans", in_chans(args)),
        "num_classes": ("num-classes", args.num_classes),
        "drop_rate": ("drop", args.drop),
        "drop_path_rate": ("drop-path", args.drop_path),
        "drop_block_rate": ("drop-block", args.drop_block),
        "bn_momentum": ("bn-momentum", args.bn_momentum),
        "bn_eps": ("bn-eps", args.bn_eps),
        "global_pool": ("gp", args.gp),
    }
    kwargs = {name: value for name, (_, value) in given.items()} | args.model_kwargs
    model = args.model
    if channels := target_channels(args.dataset):
        if ":" in model:
            raise ConfigError(
                f"argument --model: expected the name of a model with {args.dataset}, got {model}; "
                "--initial-checkpoint takes the weights of a dense model, --pretrained-path those of others"
            )
        own = {} if model == "hyena_dense" else {"backbone": model}  # the former where --eval reads a config.json
        model, kwargs = "hyena_dense", {**kwargs, **own, "num_classes": channels}
    if args.convert:
        model, kwargs = "hyena_replaced", {"base": args.model, "replace": [_replacement(args)], **kwargs}
    if overlay:
        kwargs["pretrained_cfg_overlay"] = overlay
    try:
        created = timm.create_model(model, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError, OSError) as error:
        if pretrained and not isinstance(error, TypeError):
            source = args.pretrained_path or "its pretrained weights"
            hint = "" if args.pretrained_path else "; --pretrained-path starts from a file"
            raise UserError(f"cannot load {source} into model {args.model}: {reason(error)}{hint}") from error
        text = one_line(error)
        if isinstance(error, RuntimeError) and "meta" in text:
            raise  # of `check_model`: not the arguments' fault
        named = [flag for name, (flag, value) in given.items() if value is not None and name in text]
        if "PretrainedCfg" in text:
            named.insert(0, "pretrained-cfg-overlay")
        if args.convert and text.startswith("blocks must"):
            named.append("convert-blocks")
        elif args.convert and not any(name in text for name in args.model_kwargs):
            named.append("convert-kwargs" if any(name in text for name in args.convert_kwargs) else "convert")
        named += ["gp"] if args.gp and (repr(args.gp) in text or args.gp in text) else []
        flag = next((flag for flag in named), "model-kwargs" if args.model_kwargs else "gp" if args.gp else None)
        if flag is None:
            raise
        whole = {"model-kwargs": args.model_kwargs, "pretrained-cfg-overlay": args.pretrained_cfg_overlay}
        whole |= {
            name: getattr(args, name.replace("-", "_")) for name in ("convert", "convert-blocks", "convert-kwargs")
        }
        value = {**dict(given.values()), **whole}[flag]
        raise ConfigError(f"argument --{flag}: model {args.model} refuses its argument {value}: {text}") from error
    if isinstance(created, DensePredictor) and not channels:
        raise ConfigError(
            f"argument --model: {args.model} predicts pictures; expected a model of classes, or a --dataset whose "
            "targets are pictures, such as hyena/spatial_recall"
        )
    return created


def _last_layers(model: nn.Module) -> list[nn.Module]:
    """Those that give the logits: the end of the head, which may be a small network, or of each of several heads."""
    heads = model.get_classifier()
    layers = [
        [module for module in head.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
        for head in (heads if isinstance(heads, tuple) else (heads,))
    ]
    return [of_head[-1] for of_head in layers if of_head]


def place_model(args: Arguments, model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on its device, in its dtype and layout, with the batch norms that the arguments ask for."""
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=device, dtype=getattr(torch, args.model_dtype or "float32"))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)
    return model


def data_config(args: Arguments, model: torch.nn.Module) -> dict:
    """Return timm's data configuration (input size, mean, std, interpolation, crop) of a model under the arguments.

    Beyond timm's own resolution, an image size among the model's arguments counts, and so do its input channels.

    Raises:
        ConfigError: A mean or std for another number of channels.
    """
    values = dict(vars(args))
    channels, img_size = in_chans(args), args.img_size or args.model_kwargs.get("img_size")
    for name in ("mean", "std"):
        if values[name] and len(values[name]) not in (1, channels):
            raise ConfigError(f"argument --{name}: expected 1 or {channels} values, got {values[name]}")
    if not args.input_size and img_size:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        values["input_size"] = (channels, height, width)
    elif not args.input_size:
        size = resolve_data_config(values, model=model)["input_size"]
        values["input_size"] = (channels, *size[1:])
    config = resolve_data_config(values, model=model)
    for name in ("mean", "std"):  # of a model for colours, as timm's prefetcher does
        if len(config[name]) not in (1, channels):
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def in_chans(args: Arguments) -> int:
    """Return the number of channels of the images that a model takes under the arguments."""
    return args.in_chans or (args.input_size[0] if args.input_size else args.model_kwargs.get("in_chans", 3))


def _resize(args: Arguments, model: nn.Module, img_size: int | Sequence[int] | None = None, input_size=None) -> None:
    """Tell a model that wants to know it the size of its images."""
    if not (img_size or input_size) or not hasattr(model, "set_input_size"):
        return
    size = tuple(input_size[1:]) if input_size else tuple(to_2tuple(img_size))
    try:
        model.set_input_size(img_size=size)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"model {args.model} cannot take images of {size}: {one_line(error)}") from error
