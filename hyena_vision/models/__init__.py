"""Registered timm models; importing this package registers them."""

from hyena_vision.models.dense import DensePredictor
from hyena_vision.models.hyena_former import HyenaFormer
from hyena_vision.models.hyena_vit import HyenaViT
from hyena_vision.models.hyena_vit_fpn import HyenaViTFPN
from hyena_vision.models.replace import replace_attention, restore_attention

__all__ = ["DensePredictor", "HyenaFormer", "HyenaViT", "HyenaViTFPN", "replace_attention", "restore_attention"]
