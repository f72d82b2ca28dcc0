"""The parts of `train_imagenet.py`: arguments, data, optimizer groups, checkpoints, loops and reports."""

from hyena_vision.training.errors import ConfigError, UserError

__all__ = ["ConfigError", "UserError"]
