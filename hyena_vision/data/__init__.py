"""Data sets served to timm's loaders, with timm's own ones behind the same function."""

from hyena_vision.data.classes import class_names
from hyena_vision.data.dataset import ImageDataset, create_dataset
from hyena_vision.data.digits import Digits
from hyena_vision.data.files import find_files
from hyena_vision.data.folder import FolderReader, find_split
from hyena_vision.data.image import IMAGE_MODES, DataError, image_extensions, large_pictures, load_image
from hyena_vision.data.tasks import DrawnDataset, target_channels

__all__ = [
    "IMAGE_MODES",
    "DataError",
    "Digits",
    "DrawnDataset",
    "FolderReader",
    "ImageDataset",
    "class_names",
    "create_dataset",
    "find_files",
    "find_split",
    "image_extensions",
    "large_pictures",
    "load_image",
    "target_channels",
]
