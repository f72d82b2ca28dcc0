"""Registered timm models; importing this package registers them."""

from hyena_vision.models.hyena_former import HyenaFormer
from hyena_vision.models.hyena_vit import HyenaViT

__all__ = ["HyenaFormer", "HyenaViT"]
