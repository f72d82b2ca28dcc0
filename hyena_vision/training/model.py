"""The model of a run, from its arguments."""

import logging
import os

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from torch import nn

from hyena_vision.training.arguments import Arguments, nearest
from hyena_vision.training.checkpoint_files import load_weights, read_checkpoint
from hyena_vision.training.errors import ConfigError, UserError, one_line

_logger = logging.getLogger("train")


def create_model(args: Arguments) -> torch.nn.Module:
    """Create the model that the arguments describe, with its weights, on the CPU.

    Args:
        args: Arguments of the run.

    Raises:
        ConfigError: Unknown model, or arguments that it refuses.
        UserError: Weights that cannot be read or do not fit; the message names the file.
    """
    if ":" not in args.model and not timm.is_model(args.model):
        near = nearest(args.model, timm.list_models(), count=3)
        raise ConfigError(f"argument --model: unknown model {args.model!r}{near}")
    if args.model.startswith("local-dir:") and not os.path.isdir(args.model.removeprefix("local-dir:")):
        raise ConfigError(f"argument --model: {args.model.removeprefix('local-dir:')} is not a folder")

    kwargs = {
        "in_chans": in_chans(args),
        "num_classes": args.num_classes,
        "drop_rate": args.drop,
        "drop_path_rate": args.drop_path,
        "drop_block_rate": args.drop_block,
        "bn_momentum": args.bn_momentum,
        "bn_eps": args.bn_eps,
        "global_pool": args.gp,
        **args.model_kwargs,
    }
    overlay = dict(args.pretrained_cfg_overlay)
    if args.pretrained_path:
        read_checkpoint(args.pretrained_path)  # a file that cannot be read gets its own message
        overlay |= {"file": args.pretrained_path, "num_classes": -1}  # -1: adapt the head
    if overlay:
        kwargs["pretrained_cfg_overlay"] = overlay
    if args.fast_norm:
        set_fast_norm()
    pretrained = args.pretrained or bool(args.pretrained_path)
    try:
        model = timm.create_model(args.model, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError, OSError) as error:
        if pretrained and not isinstance(error, TypeError):
            source = args.pretrained_path or "its pretrained weights"
            raise UserError(f"cannot load {source} into model {args.model}: {one_line(error)}") from error
        if not args.model_kwargs and not args.gp:
            raise
        raise ConfigError(f"model {args.model} refuses its arguments {args.model_kwargs}: {one_line(error)}") from error

    if args.eval:
        _resize(args, model, **args.trained_img_size)
        load_weights(model, args.eval)
    if args.eval or "img_size" not in args.model_kwargs:
        _resize(args, model, args.img_size, args.input_size)
    if args.initial_checkpoint:
        load_weights(model, args.initial_checkpoint)
    with torch.no_grad():
        for layer in _last_layers(model):
            if args.head_init_scale is not None:
                layer.weight.mul_(args.head_init_scale)
                layer.bias.mul_(args.head_init_scale)
            if args.head_init_bias is not None:
                nn.init.constant_(layer.bias, args.head_init_bias)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)
    return model


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


def _resize(args: Arguments, model: nn.Module, img_size: int | None = None, input_size=None) -> None:
    """Tell a model that wants to know it the size of its images."""
    if not (img_size or input_size) or not hasattr(model, "set_input_size"):
        return
    size = tuple(input_size[1:]) if input_size else (img_size, img_size)
    try:
        model.set_input_size(img_size=size)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"model {args.model} cannot take images of {size}: {one_line(error)}") from error
