"""Hyena image models for timm.

Importing the package registers its models:

    import hyena_vision
    import timm

    model = timm.create_model("hyena_vit_small", num_classes=10)
"""

from hyena_vision import models as models
from hyena_vision.models import replace_attention, restore_attention
from hyena_vision.version import __version__

__all__ = ["__version__", "models", "replace_attention", "restore_attention"]
