"""Modules: they own parameters and no kernels, and know nothing of whole models."""

from hyena_vision.layers.convert import hyena1d_from_hyenapixel, hyena1d_from_safari, hyena2d_from_hyenapixel
from hyena_vision.layers.hyena import Hyena1d, Hyena2d
from hyena_vision.layers.hyena_attention import HyenaAttention1d, HyenaAttention2d, attn_layer
from hyena_vision.layers.implicit_filter import ImplicitFilter, ImplicitFilter1d, ImplicitFilter2d

__all__ = [
    "Hyena1d",
    "Hyena2d",
    "HyenaAttention1d",
    "HyenaAttention2d",
    "ImplicitFilter",
    "ImplicitFilter1d",
    "ImplicitFilter2d",
    "attn_layer",
    "hyena1d_from_hyenapixel",
    "hyena1d_from_safari",
    "hyena2d_from_hyenapixel",
]
