"""Registered timm models; importing this package registers them."""

from hyena_vision.models.hyena_former import HyenaFormer
from hyena_vision.models.hyena_vit import HyenaViT
from hyena_vision.models.hyena_vit_fpn import HyenaViTFPN

__all__ = ["HyenaFormer", "HyenaViT", "HyenaViTFPN"]
