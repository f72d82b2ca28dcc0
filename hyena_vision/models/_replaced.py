"""What models are whose attention has been replaced: subclasses of timm's, which know the grid of their tokens.

A model of one image size tells its mixers the grid whenever the size is set. One of any size hands the grid of each
call to them, through its blocks.
"""

from typing import Any, cast

from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, _assert, nn

from hyena_vision.layers.hyena_attention import HyenaAttention


class Originals:
    """What a model was before; stays with that object, and is empty in copies and pickles."""

    def __init__(self) -> None:
        self.type: type[nn.Module] | None = None
        self.layers: dict[int, nn.Module] = {}  # by number of the block
        self.frozen: list[nn.Parameter] = []

    def __reduce__(self) -> tuple:
        return Originals, ()


class Replaced(nn.Module):
    """What a model with replaced attention does otherwise than its class."""

    originals: Originals
    replacements: list[dict[str, Any]]  # what `replace_attention` was asked for, in order
    base: str | None  # name of the registered model that this one was

    patch_embed: Any
    blocks: Any
    norm: Any

    def set_input_size(self, *args, **kwargs) -> None:
        """As timm's, and tells the mixers the new grid."""
        cast(Any, super()).set_input_size(*args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, HyenaAttention) and not takes_any_size(self):
                layer.set_grid_size(self.patch_embed.grid_size)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not decayed: timm's, and filters, skips and prefix kernels."""
        mixers = [layer for layer in self.modules() if isinstance(layer, HyenaAttention)]
        own = {"*.filter.*", "*.skip"} if mixers else set()
        prefixes = {"*.prefix_kernel"} if any(layer.num_prefix_tokens for layer in mixers) else set()
        return set(cast(Any, super()).no_weight_decay()) | own | prefixes

    def forward_features(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        """As timm's; where the size is free, each block with Hyena is handed the grid."""
        if not takes_any_size(self):
            masks = {} if attn_mask is None and not is_causal else dict(attn_mask=attn_mask, is_causal=is_causal)
            return cast(Any, super()).forward_features(x, **masks)
        _refuse_masks(attn_mask, is_causal)
        return self.norm(self._run_blocks(x, len(self.blocks), [])[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **options: Any,
    ) -> Any:
        """As timm's; where the size is free, without the options that not all classes have."""
        if not takes_any_size(self):
            options |= dict(return_prefix_tokens=return_prefix_tokens, norm=norm, stop_early=stop_early)
            options |= dict(output_fmt=output_fmt, intermediates_only=intermediates_only)
            return cast(Any, super()).forward_intermediates(x, indices, **options)
        _refuse_masks(options.pop("attn_mask", None), options.pop("is_causal", False))
        if any(options.values()):
            raise TypeError(f"output_dict is for models of one image size, got {options}")
        _assert(output_fmt in ("NCHW", "NLC"), "Output format must be one of NCHW or NLC.")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])
        x, taken = self._run_blocks(x, max_index + 1 if stop_early else len(self.blocks), take_indices)
        taken = [self.norm(y) for y in taken] if norm else taken
        prefix = cast(Any, self).num_prefix_tokens
        intermediates: list[Any] = [y[:, prefix:] for y in taken]
        if output_fmt == "NCHW":
            intermediates = [y.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous() for y in intermediates]
        if return_prefix_tokens and prefix:
            intermediates = [(y, z[:, :prefix]) for y, z in zip(intermediates, taken, strict=True)]
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def _run_blocks(self, x: Tensor, count: int, take_indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Tokens of images of any size after the first blocks, and after those that are taken."""
        model = cast(Any, self)
        x = self.patch_embed(x)  # (B, H, W, C)
        grid, rope = (x.shape[1], x.shape[2]), None
        x = model._pos_embed(x)
        if isinstance(x, tuple):
            x, rope = x
        if isinstance(getattr(model, "patch_drop", None), nn.Identity):
            x = model.patch_drop(x)
        x, taken = model.norm_pre(x), []
        for index, block in enumerate(self.blocks[:count]):
            mask = grid if isinstance(block.attn, HyenaAttention) else None
            given: tuple = (mask,)
            if isinstance(self, Eva):
                given = (rope[index] if rope is not None and model.rope_mixed else rope, mask)
            x = checkpoint(block, x, *given) if model.grad_checkpointing else block(x, *given)
            if index in take_indices:
                taken.append(x)
        return x, taken


def takes_any_size(model: nn.Module) -> bool:
    """Whether the grid may be another in each call."""
    return getattr(model, "dynamic_img_size", False)


def _refuse_masks(attn_mask: Any, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("Hyena takes no mask: attn_mask must be None and is_causal False, got a mask")


# mypy wants both bases to list the same arguments: `Replaced.forward_intermediates` takes the last of timm's as
# **options, by name, since they differ from class to class and version to version
class ReplacedVisionTransformer(Replaced, VisionTransformer):  # type: ignore[misc]  # **options, see above
    """timm's `VisionTransformer` with Hyena in place of attention."""


class ReplacedVisionTransformerDistilled(Replaced, VisionTransformerDistilled):  # type: ignore[misc]  # **options, see above
    """timm's `VisionTransformerDistilled` with Hyena in place of attention."""


class ReplacedBeit(Replaced, Beit):
    """timm's `Beit` with Hyena in place of attention."""


class ReplacedEva(Replaced, Eva):  # type: ignore[misc]  # **options, see above
    """timm's `Eva` with Hyena in place of attention."""


# Exact types: what a subclass does with tokens between blocks is its own
SUBCLASSES: dict[type[nn.Module], type[Replaced]] = {
    VisionTransformer: ReplacedVisionTransformer,
    VisionTransformerDistilled: ReplacedVisionTransformerDistilled,
    Beit: ReplacedBeit,
    Eva: ReplacedEva,
}
