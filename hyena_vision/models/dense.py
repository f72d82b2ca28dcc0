"""Models that predict pixels: any backbone of timm with a linear layer that gives the pixels of each of its tokens."""

import math
from collections.abc import Callable
from typing import Any, cast

import timm
import torch.nn.functional as F
from timm.layers import NormMlpClassifierHead
from timm.models import build_model_with_cfg, group_parameters, register_model
from torch import Tensor, nn

ARCHITECTURE = "hyena_dense"


class DensePredictor(nn.Module):
    r"""A backbone and a linear layer from its last tokens to pixels, a patch from each.

    Its cost over the backbone's is $H W C K$ for tokens of C channels and pictures of K.

    Args:
        backbone: Model with `forward_intermediates` and `feature_info`, as nearly all of timm. It loses its own head.
        num_classes: K, channels of the output.

    Raises:
        ValueError: A model that gives no maps of features, or no channels.

    Example:
        >>> model = DensePredictor(timm.create_model("hyena2d_iso_tiny", img_size=32, depth=1), num_classes=1)
        >>> model(torch.ones(2, 3, 32, 32)).shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(self, backbone: nn.Module, num_classes: int):
        super().__init__()
        self.backbone: Any = cast(Any, backbone)
        info = getattr(self.backbone, "feature_info", None)
        if not info or not hasattr(backbone, "forward_intermediates"):
            raise ValueError(f"backbone must be a model with maps of features, got {type(backbone).__name__}")
        self.num_features = info[-1].get("num_chs_norm", info[-1]["num_chs"])
        self.reduction = int(info[-1]["reduction"])
        if hasattr(backbone, "in_chans"):  # what timm writes into the config of a saved model
            self.in_chans = backbone.in_chans
        self.backbone.prune_intermediate_layers(1, prune_head=True)
        if isinstance(getattr(backbone, "head", None), NormMlpClassifierHead):  # older timm leaves its norm there
            self.backbone.head = nn.Identity()
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Begin with a new head of so many channels, at least 1."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}; forward_features gives the tokens")
        self.num_classes = num_classes
        reference = next(self.backbone.parameters())
        dd = {"device": reference.device, "dtype": reference.dtype}
        self.head = nn.Conv2d(self.num_features, num_classes * self.reduction**2, kernel_size=1, **dd)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head

    def set_input_size(self, img_size: int | tuple[int, int] | None = None) -> None:
        """Tell the backbone the size of images, where it wants to know."""
        if hasattr(self.backbone, "set_input_size"):
            self.backbone.set_input_size(img_size=img_size)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return what maps the name of a weight to its layer: the backbone's, and the head after them."""
        layers = group_parameters(self.backbone, self.backbone.group_matcher(coarse=coarse), reverse=True)
        return lambda name: layers.get(name.removeprefix("backbone."), math.inf)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the backbone's."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """As the backbone's."""
        names: Callable[[], set[str]] = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in names()}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to the last map of features (B, C, H', W'), normalized."""
        return self.backbone.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to pixels (B, num_classes, H, W)."""
        pixels = F.pixel_shuffle(self.head(self.forward_features(x)), self.reduction)
        return pixels[..., : x.shape[-2], : x.shape[-1]]  # the backbone may have filled up the last patches


def _prefixed(names: Any) -> Any:
    """Return the name of a layer, or several, as it is in the whole model."""
    if isinstance(names, tuple | list):
        return tuple(f"backbone.{name}" for name in names)
    return names and f"backbone.{names}"


@register_model
def hyena_dense(
    pretrained: bool = False, backbone: str = "hyena2d_vit_small", num_classes: int | None = None, **kwargs: Any
) -> nn.Module:
    """A `DensePredictor` over a model of timm; what the config of a saved one names.

    Args:
        pretrained: Whether weights are loaded: those of the whole model where there is a config of one ("local-dir:",
            "hf-hub:") or `pretrained_cfg_overlay` holds them as `state_dict`, else the backbone's.
        backbone: Name of the registered model.
        num_classes: Channels of the output; None for those of the config of a saved model, else 3.
        **kwargs: For the backbone.

    Returns:
        The model.
    """
    if kwargs.pop("features_only", False):
        raise ValueError(f"hyena_dense gives pixels; maps of features are those of {backbone} with features_only=True")
    config, overlay = kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None)
    own_kwargs: dict[str, Any] = {}
    if config is None:
        found = timm.models.get_pretrained_cfg(backbone)
        if found is None:
            raise ValueError(f"backbone must be the name of a model of timm, got {backbone!r}")
        own = {"architecture": ARCHITECTURE, "first_conv": _prefixed(found.first_conv), "classifier": "head"}
        config = {**found.to_dict(), "num_classes": num_classes or 3, **(overlay or {}), **own}
        whole = any(name.startswith("backbone.") for name in (overlay or {}).get("state_dict", ()))
        if pretrained and not whole:
            own_kwargs = dict(pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=kwargs.get("cache_dir"))
        pretrained, overlay = pretrained and whole, None

    def build(num_classes: int, **model_kwargs: Any) -> nn.Module:
        return DensePredictor(timm.create_model(backbone, **own_kwargs, **model_kwargs), num_classes)

    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    return build_model_with_cfg(build, ARCHITECTURE, pretrained, pretrained_cfg=config, **kwargs)
