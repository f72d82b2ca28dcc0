"""Data sets served to timm's loaders, with timm's own ones behind the same function."""

from hyena_vision.data.dataset import DataError, ImageDataset, create_dataset
from hyena_vision.data.digits import Digits

__all__ = ["DataError", "Digits", "ImageDataset", "create_dataset"]
