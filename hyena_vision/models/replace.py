"""Hyena in place of the attention of a model that one has: timm's ViT family.

Blocks of these models hand (B, N, C) to attention, where a grid of 2 x 8 and one of 8 x 2 look alike. So a converted
model is of a subclass of its class, from which mixers get the grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.beit import checkpoint_filter_fn as beit_filter
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from hyena_vision.layers.from_attention import hyena_from_attention, why_not_hyena
from hyena_vision.layers.hyena_attention import HyenaAttention, hyena_attention_class
from hyena_vision.models._blocks import chosen_blocks
from hyena_vision.models._replaced import SUBCLASSES, Originals, Replaced, takes_any_size

ARCHITECTURE = "hyena_replaced"


_REASONS = {
    "SwinTransformer": "attends within windows",
    "SwinTransformerV2": "attends within windows",
    "VisionTransformerSAM": "attends within windows",
    "CrossVit": "has cross attention",
    "NaFlexVit": "takes sequences with masks and grids that change from image to image",
    "FeatureGetterNet": "is a wrapper: replace attention in its .model",
    "DistributedDataParallel": "is a wrapper: replace attention before it is put on",
}


@dataclass(frozen=True)
class ReplaceReport:
    """What `replace_attention` did; prints well.

    Attributes:
        model: Class of the model before.
        mixer: Class of the layers that came in.
        replaced: Names of the attention layers that were replaced.
        kept: Names of those that were not.
        new_parameters: Numbers of parameters that had no counterpart and were drawn, by name within the layer.
        parameters: Parameters of the model, before and after.
        flops: Of one image at the model's input size in all layers replaced, before and after, counted by formula (two
            for a multiplication and an addition, 2.5 n log2 n for a real transform). Kernels, which are made once per
            batch, are not counted.
        notes: What else changed.
        model_args: What the registered model `hyena_replaced` needs to be the same, for versions of timm that do not
            keep it (before 1.0.31): `save_for_hf(model, folder, model_args={**report.model_args, ...})`.
    """

    model: str
    mixer: str
    replaced: tuple[str, ...]
    kept: tuple[str, ...]
    new_parameters: dict[str, int]
    parameters: tuple[int, int]
    flops: tuple[float, float]
    notes: tuple[str, ...]
    model_args: dict[str, Any]

    def __str__(self) -> str:
        """A few lines for people."""
        new = ", ".join(f"{name} {count:,}" for name, count in self.new_parameters.items())
        lines = [
            f"{self.model}: {self.mixer} in place of {len(self.replaced)} of {len(self.replaced) + len(self.kept)} "
            "attention layers",
            f"  replaced    {', '.join(self.replaced)}",
            f"  kept        {', '.join(self.kept) or 'none'}",
            "  taken       projections, norms and biases of attention",
            f"  drawn       {new}",
            "  parameters  {:,} -> {:,} ({:+.1%})".format(
                *self.parameters, self.parameters[1] / self.parameters[0] - 1
            ),
            "  GFLOPs      {:.3g} -> {:.3g} per image in these layers".format(*(n / 1e9 for n in self.flops)),
        ]
        return "\n".join(lines + [f"  note        {note}" for note in self.notes])


def replace_attention(
    model: nn.Module,
    mixer: str | type[nn.Module] = "hyena2d",
    blocks: str | int | Sequence[int] = "all",
    **mixer_kwargs: Any,
) -> ReplaceReport:
    """Put Hyena in place of attention in blocks of a model of timm's ViT family.

    The model is changed, and stays a model of its class and of timm. Its projections are taken from attention; filters,
    short filters, skips and the weights by which the image reads prefix tokens begin afresh, so it has to be trained.
    The old layers stay with this model object, where `restore_attention` finds them: they are in no state dict and in
    no copy, and training does not change them.

    Args:
        model: A `VisionTransformer` (also DeiT 3, DINOv2, SigLIP, CLIP), `VisionTransformerDistilled`, `Beit` or `Eva`
            (also DINOv3 and other models with rotary positions) of timm.
        mixer: "hyena1d", "hyena2d", or a subclass of `hyena_vision.layers.HyenaAttention1d` or `HyenaAttention2d`.
        blocks: "all"; "every n", for the n-th, the 2n-th and so on; "first f" or "last f", for that share of the depth;
            or indices.
        **mixer_kwargs: Settings of the mixer and its filter, as for `hyena_vision.layers.HyenaAttention2d`.
            `base_grid` is the model's grid by default.

    Returns:
        What was done; print it.

    Raises:
        TypeError: The model is none of these, or a setting is unknown.
        ValueError: The model's grid is not known, patches are dropped, or a block has something that cannot be
            replaced; nothing is changed then.

    Example:
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3)
        >>> print(replace_attention(vit, "hyena2d", blocks="first 0.5"))
        VisionTransformer: HyenaAttention2d in place of 1 of 2 attention layers...
    """
    subclass = _subclass_of(model)
    layer_type = hyena_attention_class(mixer)
    vit = cast(Any, model)
    grid = _grid_of(vit)
    chosen = chosen_blocks(blocks, len(vit.blocks))
    for index in chosen:
        _check_block(index, vit.blocks[index])
    mixer_kwargs.setdefault("base_grid", list(grid))
    own = (layer_type, None if takes_any_size(model) else grid, vit.num_prefix_tokens)
    layers = {index: hyena_from_attention(vit.blocks[index].attn, *own, **mixer_kwargs) for index in chosen}
    notes, before = _notes(vit, chosen), _count(model)
    if type(model) is not subclass:
        vit.originals, vit.replacements = Originals(), []
        vit.originals.type = type(model)
        vit.base = getattr(vit, "pretrained_cfg", {}).get("architecture")
        model.__class__ = subclass
    for index, layer in layers.items():
        if vit.originals.type is not None:  # a copy has no way back to its class
            vit.originals.layers[index] = vit.blocks[index].attn
        vit.blocks[index].attn = layer
    name = mixer if isinstance(mixer, str) else layer_type
    vit.replacements = [*vit.replacements, dict(mixer=name, blocks=chosen, **mixer_kwargs)]
    _freeze_what_nobody_reads(vit)
    _remember(vit)
    kept = [i for i, block in enumerate(vit.blocks) if not isinstance(getattr(block, "attn", None), HyenaAttention)]
    return ReplaceReport(
        model=next(cls.__name__ for cls, ours in SUBCLASSES.items() if ours is subclass),
        mixer=layer_type.__name__,
        replaced=tuple(f"blocks.{index}.attn" for index in chosen),
        kept=tuple(f"blocks.{index}.attn" for index in kept),
        new_parameters=_drawn(list(layers.values())),
        parameters=(before, _count(model)),
        flops=(
            sum(_attention_flops(layer, math.prod(grid)) for layer in layers.values()),
            sum(_hyena_flops(layer, math.prod(grid)) for layer in layers.values()),
        ),
        notes=tuple(notes),
        model_args=dict(base=vit.base, replace=vit.replacements),
    )


def restore_attention(model: nn.Module) -> None:
    """Put back the attention that `replace_attention` took out of this model, bit by bit.

    Layers come back as they were when they were replaced, on the device and in the dtype of the mixers. What has been
    trained in between elsewhere in the model stays trained, and what the mixers have learnt is lost.

    Args:
        model: The object that `replace_attention` was called on. Copies, EMA models and loaded models do not have the
            old layers.

    Raises:
        ValueError: Attention was not replaced in this object.

    Example:
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3)
        >>> report = replace_attention(vit)
        >>> restore_attention(vit)
        >>> type(vit.blocks[0].attn).__name__
        'Attention'
    """
    if not isinstance(model, Replaced):
        raise ValueError(f"model must be one that replace_attention has changed, got {type(model).__name__}")
    vit, originals = cast(Any, model), model.originals
    if originals.type is None:
        raise ValueError(
            "model must be the object that replace_attention was called on, got a copy or a loaded model: old "
            "attention layers are in no copy and no state dict"
        )
    for index, attention in originals.layers.items():
        if index < len(vit.blocks):  # the rest was pruned
            block = vit.blocks[index]
            if isinstance(attention, BeitAttention) and hasattr(attention, "set_window_size"):
                attention.set_window_size(vit.patch_embed.grid_size)
            block.attn = attention.to(block.attn.proj.weight).train(block.attn.training)
    for parameter in originals.frozen:
        parameter.requires_grad_(True)
    if hasattr(vit, "pretrained_cfg"):
        vit.pretrained_cfg = vit.default_cfg = dict(vit.pretrained_cfg, architecture=vit.base)
    if hasattr(vit, "_model_args"):
        vit._model_args = {key: value for key, value in vit._model_args.items() if key not in ("base", "replace")}
    del vit.originals, vit.replacements, vit.base
    cast(Any, model).__class__ = originals.type


def _subclass_of(model: nn.Module) -> type[Replaced]:
    if isinstance(model, Replaced):
        return type(model)
    if type(model) in SUBCLASSES:
        return SUBCLASSES[type(model)]
    name = type(model).__name__
    reason = f", which {_REASONS[name]}" if name in _REASONS else ""
    raise TypeError(f"model must be one of timm's {', '.join(c.__name__ for c in SUBCLASSES)}, got {name}{reason}")


def _grid_of(vit: Any) -> tuple[int, int]:
    """Tokens (H, W) of an image of the model's size."""
    if not isinstance(getattr(vit, "patch_drop", None), nn.Identity | None):
        raise ValueError("patch_drop_rate must be 0, got a model that drops patches: what is left has no grid")
    embed = vit.patch_embed
    if not takes_any_size(vit) and not getattr(embed, "strict_img_size", False):
        raise ValueError("patch_embed must check the image size or the model have dynamic_img_size=True, got neither")
    if getattr(embed, "grid_size", None) is None:
        raise ValueError("patch_embed.grid_size must be known, got None: make the model with an img_size")
    height, width = embed.grid_size
    return int(height), int(width)


def _check_block(index: int, block: nn.Module) -> None:
    attention = getattr(block, "attn", None)
    if attention is None:
        raise ValueError(f"block {index} must have one attention layer named attn, got {type(block).__name__}")
    if isinstance(attention, HyenaAttention):
        raise ValueError(f"block {index} must have attention, got {type(attention).__name__}: it is replaced already")
    reason = why_not_hyena(attention)
    if reason is not None:
        raise ValueError(f"block {index} cannot be replaced: {reason}")


def _notes(vit: Any, chosen: list[int]) -> list[str]:
    """What becomes of a model's own ways with positions and prefix tokens."""
    notes = []
    attention = vit.blocks[chosen[0]].attn
    if vit.num_prefix_tokens:
        notes.append(
            f"prefix tokens: {vit.num_prefix_tokens}, read all tokens by softmax attention with the old weights; the "
            "image reads them through prefix_kernel"
        )
    if getattr(vit, "rope", None) is not None:
        what = "turns the keys that prefix tokens read, as before" if vit.num_prefix_tokens else "is not read there"
        notes.append(f"rope {what}; long convolutions know positions by themselves")
    if getattr(attention, "relative_position_bias_table", None) is not None:
        notes.append("relative_position_bias_table: the class token's part lives on as class_bias, the rest is gone")
    if getattr(vit, "rel_pos_bias", None) is not None:
        notes.append(
            "rel_pos_bias: only its rows of prefix tokens are read; it still takes memory of all pairs of tokens"
        )
    if getattr(attention, "k_bias", None) is not None or (
        attention.qkv is None and attention.k_proj.bias is None and attention.q_proj.bias is not None
    ):
        notes.append("keys had no bias; they have one now, that begins at 0")
    if vit.global_pool == "token" and len(vit.blocks) - 1 in chosen:
        notes.append(
            f"the head reads prefix tokens alone, so that no loss on logits trains the long convolution of block "
            f"{len(vit.blocks) - 1}, the last"
        )
    return notes


def _freeze_what_nobody_reads(vit: Any) -> None:
    """Learnt rotary positions that no block reads would wait for gradients in vain, which DDP refuses."""
    if vit.num_prefix_tokens or not all(isinstance(block.attn, HyenaAttention) for block in vit.blocks):
        return
    rope = getattr(vit, "rope", None)
    for parameter in [] if rope is None else rope.parameters():
        if parameter.requires_grad:
            vit.originals.frozen.append(parameter.requires_grad_(False))


def _remember(vit: Any) -> None:
    """Note for timm how the model is made again."""
    if vit.base is not None:
        vit.pretrained_cfg = vit.default_cfg = dict(vit.pretrained_cfg, architecture=ARCHITECTURE)
        if hasattr(vit, "_model_args"):  # timm before 1.0.31 keeps none
            vit._model_args = dict(vit._model_args, base=vit.base, replace=vit.replacements)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _drawn(layers: list[HyenaAttention]) -> dict[str, int]:
    """Numbers of parameters that attention has no counterpart of, by part."""
    found: dict[str, int] = {}
    for layer in layers:
        for name, parameter in layer.named_parameters():
            part = name.split(".")[0]
            if part in ("short_filter", "filter", "skip", "prefix_kernel", "value_norm", "gate_norms"):
                found[part] = found.get(part, 0) + parameter.numel()
            elif part == "qkv" and layer.order > 2:
                found[part] = found.get(part, 0) + parameter.numel() * (layer.order - 2) // (layer.order + 1)
    return found


def _attention_flops(layer: HyenaAttention, image: int) -> float:
    tokens = layer.num_prefix_tokens + image
    return 8.0 * tokens * layer.dim**2 + 4.0 * tokens**2 * layer.dim


def _hyena_flops(layer: HyenaAttention, image: int) -> float:
    dim, signals = layer.dim, layer.order + 1
    tokens, padded = layer.num_prefix_tokens + image, image * 2**layer.rank
    projections = 2.0 * (signals + 1) * tokens * dim**2
    short = 2.0 * image * layer.short_filter.weight.numel()
    convolutions = (layer.order - 1) * dim * 2 * 2.5 * padded * math.log2(padded)
    return projections + short + convolutions + 4.0 * layer.num_prefix_tokens * tokens * dim


def fit_weights(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit weights of a model of timm's ViT family, converted or not, to one of another image size, as timm does.

    Args:
        state_dict: Weights by name.
        model: Model that they are for.

    Returns:
        Weights by the model's names, positions resampled.
    """
    family = eva_filter if isinstance(model, Eva) else beit_filter if isinstance(model, Beit) else vit_filter
    return family(state_dict, cast(Any, model))


default_cfgs = generate_default_cfgs(
    {
        ARCHITECTURE: {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def hyena_replaced(
    pretrained: bool = False,
    base: str = "vit_base_patch16_224",
    replace: Sequence[dict[str, Any]] = ({"mixer": "hyena2d", "blocks": "all"},),
    **kwargs: Any,
) -> nn.Module:
    """A model of timm's ViT family with attention replaced; what the config of a saved one names.

    Args:
        pretrained: Whether weights are loaded: those of the converted model where there is a config of one
            ("local-dir:", "hf-hub:") or `pretrained_cfg_overlay` holds them as `state_dict`, else those of `base`,
            before attention is replaced.
        base: Name of the registered model.
        replace: Arguments of `replace_attention`, once or several times.
        **kwargs: For `base`.

    Returns:
        The converted model.
    """
    config, overlay = kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
    base_kwargs: dict[str, Any] = {}
    if config is None:
        found = timm.models.get_pretrained_cfg(base)
        if found is None:
            raise ValueError(f"base must be the name of a model of timm, got {base!r}")
        config = {**found.to_dict(), **(overlay or {}), "architecture": ARCHITECTURE}
        converted = any(".attn.short_filter." in name for name in (overlay or {}).get("state_dict", ()))
        if pretrained and not converted:
            base_kwargs = dict(pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=kwargs.get("cache_dir"))
        pretrained, overlay = pretrained and converted, None

    def build(**model_kwargs: Any) -> nn.Module:
        model = timm.create_model(base, **base_kwargs, **model_kwargs)
        for arguments in replace:
            replace_attention(model, **arguments)
        if not base_kwargs:
            cast(Any, model).originals = Originals()  # layers that were drawn, not trained
        return model

    return build_model_with_cfg(
        build,
        ARCHITECTURE,
        pretrained,
        pretrained_cfg=config,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=fit_weights,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )
