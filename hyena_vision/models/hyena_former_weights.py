"""Weights of HyenaPixel's models: the authors' files, our own, and where they are."""

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from timm.models._hub import hf_split
from timm.models.metaformer import Attention, SepConv
from torch import Tensor, nn

from hyena_vision.layers import Hyena1d, Hyena2d
from hyena_vision.layers.convert import hyenapixel1d_weights, hyenapixel2d_weights
from hyena_vision.layers.implicit_filter import rename_omega


def grid_side(img_size: int, stage: int) -> int:
    """Tokens on a side at a stage, as the convolutions of stem and stages give them."""
    side = (img_size - 3) // 4 + 1
    for _ in range(stage):
        side = (side - 1) // 2 + 1
    return side


_BODY_OF_ORIGINAL = (
    (r"^downsample_layers\.0\.conv\.", "stem.conv."),
    (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
    (r"^downsample_layers\.(\d+)\.pre_norm\.", r"stages.\1.downsample.norm."),
    (r"^downsample_layers\.(\d+)\.conv\.", r"stages.\1.downsample.conv."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Fit a checkpoint of this family, in the layout of HyenaPixel's authors or in its own, to a model.

    Kernels keep their extent in tokens when weights move between models of other `base_img_size`. Only where a 2D table
    of the file is smaller than the model's, it is resampled as the authors did before they fine-tuned at 384 pixels:
    bicubically and antialiased from K to K' taps, while windows fall off 2 K / K' times as fast per token. Where a
    file's table is larger, the model's grows as the weights are loaded.

    Args:
        state_dict: Weights by name, or a checkpoint with them under "state_dict_ema", "model_ema", "state_dict" or
            "model".
        model: The `HyenaFormer` that they are for.

    Returns:
        Weights by the names of `model`, complete but for the head.

    Raises:
        ValueError: The file is of another variant, or a 1D table of it is smaller than the model's; the message names
            the first weight that does not fit.

    Source:
        spravil/HyenaPixel (Apache-2.0), `interpolate_hpx_former_s18_state_dict`; the factor 2 is its own.
    """
    fitted = _fit(state_dict, model)
    own, given = ({key for key in keys if not key.startswith("head.")} for keys in (model.state_dict(), fitted))
    for keys, difference in ((own - given, "lacks {}"), (given - own, "has {}, the model has no such weight")):
        if keys:
            raise ValueError("the checkpoint is of another variant: it " + difference.format(repr(min(keys))))
    return fitted


def _fit(state_dict: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """`checkpoint_filter_fn` for any part of the weights."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        state_dict = state_dict.get(key) or state_dict
    fitted = {rename_omega(key): value for key, value in state_dict.items()}
    saved = fitted.pop("base_img_size", None)
    base_img_size = model._base_img_size if saved is None or saved.is_meta else int(saved)
    if any(key.startswith("downsample_layers.") for key in fitted):
        fitted, base_img_size = _rename(fitted, model), model._base_img_size
    for path, mixer in model.named_modules():
        table = fitted.get(f"{path}.filter.z")
        if table is None or not _has_table(mixer, table.ndim):
            continue
        rank, stage, decay = table.ndim - 1, int(path.split(".")[1]), f"{path}.filter.decay"
        # Tokens on an axis of the kernel: of a row of the image in 2D, of all of it in 1D
        wanted, base, own_base = (
            grid_side(size, stage) ** (3 - rank) for size in (model.table_img_size, base_img_size, model._base_img_size)
        )
        given = (table.shape[-1] + 1) // 2
        factor = own_base / base
        if given < wanted and rank == 1:
            raise ValueError(
                f"the checkpoint's kernels are shorter than the model's, and 1D kernels cannot be resampled: "
                f"{path}.filter.z is for {wanted} tokens, the checkpoint's for {given}; leave base_img_size as it was"
            )
        if given < wanted:
            size = (2 * wanted - 1, 2 * wanted - 1)
            resampled = F.interpolate(table[None].float(), size=size, mode="bicubic", antialias=True)[0]
            fitted[f"{path}.filter.z"] = resampled.to(table.dtype)
            factor *= 2 * table.shape[-1] / size[0]
        if factor != 1 and decay in fitted:
            fitted[decay] = fitted[decay] * factor
    fitted["base_img_size"] = torch.full_like(model.base_img_size, model._base_img_size)
    return fitted


def _has_table(module: nn.Module, ndim: int) -> bool:
    """Whether it is a mixer with a learnt table of so many axes."""
    if not isinstance(module, (Hyena1d, Hyena2d)) or module.filter.z is None:
        return False
    return module.filter.z.ndim == ndim


def _rename(state_dict: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Weights of the authors' layout by our names; those of mixers that the model does not have keep theirs."""
    renamed: dict[str, Tensor] = {}
    mixers: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        for pattern, ours in _BODY_OF_ORIGINAL:
            key = re.sub(pattern, ours, key)
        block, is_mixer, name = key.partition(".token_mixer.")
        if is_mixer:
            mixers.setdefault(f"{block}.token_mixer", {})[name] = value
        else:
            renamed[key] = value
    own = dict(model.named_modules())
    for path, weights in mixers.items():
        converted = _convert_mixer(path, weights, own[path]) if path in own else weights
        renamed.update({f"{path}.{name}": value for name, value in converted.items()})
    return renamed


_KINDS = {"long_conv.z": Hyena2d, "filter_fn.pos_emb.z": Hyena1d, "dwconv.weight": SepConv, "qkv.weight": Attention}


def _convert_mixer(path: str, weights: dict[str, Tensor], mixer: nn.Module) -> dict[str, Tensor]:
    given = next((kind for key, kind in _KINDS.items() if key in weights), None)
    if given is None or not isinstance(mixer, given):
        raise ValueError(
            f"the checkpoint is of another variant: {path} is {type(mixer).__name__} in the model, "
            f"{given.__name__ if given else 'unknown'} in the checkpoint"
        )
    if given is SepConv:
        return {name: value[:, :, None, None] if value.ndim == 2 else value for name, value in weights.items()}
    if given is Attention:
        return weights
    try:
        if isinstance(mixer, Hyena1d):
            return hyenapixel1d_weights(weights, mixer)
        return hyenapixel2d_weights(weights, cast(Hyena2d, mixer))
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error} of {path}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def before_load(model: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Accept the authors' files wherever weights are loaded, and make room for tables of other sizes."""
    own = {key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    own = _fit(own, model)
    for path, mixer in model.named_modules():
        table = own.get(f"{path}.filter.z")
        if table is not None and _has_table(mixer, table.ndim):
            size = tuple((extent + 1) // 2 for extent in table.shape[1:])
            if size != mixer.filter.table_size:
                mixer.filter.set_table_size(size)
    state_dict.update({prefix + key: value for key, value in own.items()})


# The authors' code and their README name different repositories.
_ALSO_CALLED = {"Spravil/hpx_former_s18.westai_in1k_384": "Spravil/hpx_former_s18.westai_in1k_ema_384"}


def find_on_hub(variant: str, hub_id: str, filename: str | None, cache_dir: str | None) -> str:
    """The repository with the weights: that of `hub_id` or of its other name, cached here or on the hub.

    timm would try for most of a minute to reach a hub that cannot be reached, and say so in many lines.
    """
    reasons = []
    for name in filter(None, (hub_id, _ALSO_CALLED.get(hub_id))):
        repository, revision = hf_split(name)
        for file in filter(None, (filename, "model.safetensors", "pytorch_model.bin")):
            if isinstance(try_to_load_from_cache(repository, file, cache_dir=cache_dir, revision=revision), str):
                return name
        try:
            HfApi().model_info(repository, revision=revision, timeout=10)
            return name
        except RepositoryNotFoundError:
            reasons.append(f"{name} does not exist")
        except Exception as error:  # of whatever library the hub's client uses
            reasons.append(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    raise RuntimeError(
        f"the weights of {variant} cannot be fetched ({'; '.join(reasons)}); "
        "with their file at hand: pretrained_cfg_overlay=dict(file=PATH)"
    )
