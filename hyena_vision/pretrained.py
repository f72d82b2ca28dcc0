"""Trained models with what they need to be used: preprocessing and class names, of a run, a file or a name of timm."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from hyena_vision.data import IMAGE_MODES, class_names, large_pictures, load_image
from hyena_vision.models import DensePredictor
from hyena_vision.training.arguments import Arguments, nearest
from hyena_vision.training.checkpoint_files import find_weights, load_weights, read_checkpoint, read_exported, reason
from hyena_vision.training.classes import label_names
from hyena_vision.training.config import trained_args
from hyena_vision.training.errors import ConfigError, UserError, one_line
from hyena_vision.training.model import create_model, data_config


@dataclass
class Pretrained:
    """A trained model in eval mode on the CPU, with what it needs to be used.

    Args:
        model: Maps images (B, C, H, W) to logits (B, classes).
        data_config: timm's data configuration: `input_size` (C, H, W), `mean`, `std`, `interpolation`, `crop_pct`,
            `crop_mode`.
        class_names: Names of the classes by index; None where nothing says them.
        image_mode: PIL mode of the images.
        name: What it was loaded from, for titles and messages.
        exif: Whether images are turned as their EXIF data say.
    """

    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    image_mode: str
    name: str
    exif: bool = True

    def preparation(self) -> Callable[[str], Tensor]:
        """Return what reads an image file as the model takes it, (C, H, W), as in validation.

        It raises DataError for a file that cannot be read, and can be sent to other processes.
        """
        transform = create_transform(**self.data_config, is_training=False)
        return partial(_prepare, transform, self.image_mode, self.exif)

    def class_name(self, index: int) -> str:
        """Return the name of a class, its number where nothing says it."""
        named = self.class_names is not None and index < len(self.class_names)
        return self.class_names[index] if named else str(index)


@large_pictures()
def _prepare(transform: Callable, image_mode: str, exif: bool, file: str) -> Tensor:
    return transform(load_image(file, image_mode, exif))


class OnnxModel(nn.Module):
    """An exported model, run by onnxruntime.

    Args:
        path: The .onnx file. Its first input is images (B, C, H, W), its first output logits.

    Raises:
        UserError: onnxruntime is missing, or the file is not such a model.
    """

    def __init__(self, path: str):
        """Open the file on the CPU."""
        super().__init__()
        self.path = path
        self._open("CPUExecutionProvider")

    def _open(self, provider: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{self.path} needs onnxruntime, which is missing: pip install onnxruntime") from error
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"{self.path}: this onnxruntime has no {provider}: pip install onnxruntime-gpu")
        try:
            self.session = onnxruntime.InferenceSession(self.path, providers=[provider])
        except Exception as error:  # onnxruntime's own classes
            raise UserError(f"cannot read {self.path}: {reason(error)}") from error
        image, self.output = self.session.get_inputs()[0], self.session.get_outputs()[0].name
        if len(image.shape) != 4 or image.type not in ("tensor(float)", "tensor(float16)"):
            raise UserError(f"{self.path} takes {image.type} of {image.shape}, expected images (B, C, H, W)")
        self.input, self.half = image.name, image.type == "tensor(float16)"
        # Sizes that the export has fixed; others are names
        self.batch_size, *self.input_size = (n if isinstance(n, int) else None for n in image.shape)

    def to(self, device: torch.device | str) -> "OnnxModel":  # type: ignore[override]  # a device is all there is
        """Run on a device from now on, the CPU or CUDA."""
        kind = torch.device(device).type
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if kind not in providers:
            raise UserError(f"{self.path} runs on cpu or cuda, got {kind}")
        if [providers[kind]] != self.session.get_providers()[:1]:
            self._open(providers[kind])
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, C, H, W); the last batch of a fixed size is filled up."""
        dtype = torch.float16 if self.half else torch.float32
        parts = []
        for part in images.split(self.batch_size or len(images)):
            missing = (self.batch_size or len(part)) - len(part)
            filled = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]).to("cpu", dtype)
            (logits,) = self.session.run([self.output], {self.input: filled.numpy()})
            parts.append(torch.from_numpy(logits)[: len(part)])
        return torch.cat(parts)


def load(
    source: str | os.PathLike,
    img_size: int | tuple[int, int] | None = None,
    config: str | os.PathLike | None = None,
    pretrained: bool = True,
) -> Pretrained:
    """Load a trained model.

    Args:
        source: One of these:

            - the folder of a run, or `local-dir:FOLDER`: its best weights;
            - a checkpoint of a run (`model_best.pth.tar`), or weights with a config.json beside them
              (`model.safetensors`);
            - an exported `FILE.onnx` with a config.json beside it;
            - a name of timm (`resnet50.a1_in1k`, `hf-hub:OWNER/NAME`), whose weights timm downloads.
        img_size: Height and width in pixels of the images, or one number for both; None for those it was trained on.
        config: The config.json of a file that has none beside it.
        pretrained: False leaves a model of timm with initial weights.

    Returns:
        The model and what it needs.

    Raises:
        UserError: There is no such model, or it cannot be read; the message has what was given.

    Example:
        >>> load("vit_tiny_patch16_224", pretrained=False).data_config["input_size"]
        (3, 224, 224)
    """
    source = os.fspath(source)
    path = source.removeprefix("local-dir:")
    if os.path.isdir(path):
        path = find_weights(path)
    if os.path.isfile(path):
        loaded = _load_file(path, None if config is None else os.fspath(config))
    elif path != source or os.sep in path.partition("hf-hub:")[0] or path.endswith((".onnx", ".safetensors", ".tar")):
        raise UserError(f"no such file or folder: {path}")
    else:
        loaded = _load_named(source, pretrained)
    loaded.model.eval()
    if img_size is not None:
        _resize(loaded, (img_size, img_size) if isinstance(img_size, int) else tuple(img_size))
    return loaded


def usable_device(name: str | None) -> torch.device:
    """Return a device by name; None is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: There is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"argument --device: cannot use {name}: {reason(error)}") from error
    return device


def _load_file(path: str, config: str | None) -> Pretrained:
    beside = os.path.join(os.path.dirname(path), "config.json")
    if path.endswith(".onnx"):
        return _load_onnx(path, config or beside)
    if config is None and not path.endswith(".safetensors"):
        checkpoint = read_checkpoint(path)
        if checkpoint.get("args"):
            return _load_checkpoint(path, checkpoint.get("class_to_idx"))
    if config is None and not os.path.exists(beside):
        raise UserError(f"{path} does not say what model it is of: expected a config.json beside it")
    architecture, model_args, cfg, reading = read_exported(config := config or beside)
    try:
        model = timm.create_model(architecture, pretrained_cfg=cfg, **model_args)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot create the model of {config}: {reason(error)}") from error
    load_weights(model, path)
    return _finish(model, resolve_data_config(model=model), _names_in(cfg), path, _settings_beside(config) | reading)


def _load_checkpoint(path: str, class_to_idx: dict[str, int] | None) -> Pretrained:
    """Load what the training program has saved, as its --eval does."""
    values = vars(trained_args(path))
    if class_to_idx and values["num_classes"] is None:
        values["num_classes"] = max(class_to_idx.values()) + 1
    args = Arguments(**values)
    model = create_model(args)
    names = class_names(class_to_idx) if class_to_idx else None
    return _finish(model, data_config(args, model), names, path, values)


def _load_onnx(path: str, config: str) -> Pretrained:
    """Load an exported model, whose sizes go before those of its configuration where it has fixed them."""
    if not os.path.exists(config):
        raise UserError(f"{path} does not say how images are prepared: expected {config}, or another file as config")
    _, _, cfg, reading = read_exported(config)
    model = OnnxModel(path)
    preprocessing = resolve_data_config(pretrained_cfg=cfg)
    fixed = zip(model.input_size, preprocessing["input_size"], strict=True)
    preprocessing["input_size"] = tuple(given or size for given, size in fixed)
    return _finish(model, preprocessing, _names_in(cfg), path, _settings_beside(config) | reading)


def _settings_beside(config: str) -> dict[str, Any]:
    """Return the arguments of the run whose config.json it is, for what older ones do not say; empty without them."""
    path = os.path.join(os.path.dirname(config), "args.yaml")
    if not os.path.isfile(path):
        return {}
    try:
        return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not the args.yaml of a run: {one_line(error)}") from error


def _finish(
    model: nn.Module, preprocessing: dict[str, Any], names: list[str] | None, name: str, settings: dict[str, Any]
) -> Pretrained:
    """Put together what was loaded; the arguments of its run say how images are read."""
    if isinstance(model, DensePredictor):
        raise UserError(f"{name} predicts pictures, not classes; timm.create_model reads it as local-dir:FOLDER")
    channels, mode = preprocessing["input_size"][0], settings.get("input_img_mode")
    if not mode and channels not in IMAGE_MODES:
        raise UserError(f"{name} takes {channels} channels, expected those of an image: 1, 3 or 4")
    exif = not settings.get("no_exif", False)
    preprocessing = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocessing.items()}
    return Pretrained(model, preprocessing, names, mode or IMAGE_MODES[channels], name, exif)


def _load_named(name: str, pretrained: bool) -> Pretrained:
    """Load a model of timm by name; those of ImageNet have its names."""
    if ":" not in name and not timm.is_model(name):
        near = nearest(name, timm.list_models(pretrained=pretrained) + timm.list_models(), count=3)
        raise UserError(f"{name!r} is no file, folder or model of timm{near}")
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # of timm, the hub's client and the network
        raise UserError(f"cannot load the weights of {name}: {reason(error)}") from error
    cfg, preprocessing = model.pretrained_cfg, resolve_data_config(model=model)
    names = _names_in(cfg)
    if names is None and (subset := infer_imagenet_subset(model)):
        names = ImageNetInfo(subset).label_descriptions()
    return _finish(model, preprocessing, names, name, {})


def _names_in(cfg: dict[str, Any]) -> list[str] | None:
    """Return the names of the classes in a `pretrained_cfg`, by their descriptions where there are any."""
    names, descriptions = label_names(cfg), cfg.get("label_descriptions") or {}
    return [str(descriptions.get(name, name)) for name in names] if names else None


def _resize(loaded: Pretrained, size: tuple[int, ...]) -> None:
    """Let the model take images of another size."""
    model, given = loaded.model, loaded.data_config["input_size"]
    try:
        if isinstance(model, OnnxModel):
            if any(fixed not in (None, n) for fixed, n in zip(model.input_size[1:], size, strict=True)):
                raise ValueError(f"it was exported for {model.input_size[1:]}")
        elif hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{loaded.name} cannot take images of {size}: {one_line(error)}") from error
    loaded.data_config = {**loaded.data_config, "input_size": (given[0], *size)}
