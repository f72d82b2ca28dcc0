"""Registered timm models; importing this package registers them."""

from hyena_vision.models.hyena_vit import HyenaViT

__all__ = ["HyenaViT"]
