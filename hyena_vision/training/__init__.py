"""The parts of `hyena_vision.train`: arguments, data, optimizer groups, checkpoints, loops and reports."""

from hyena_vision.training.errors import ConfigError, UserError

__all__ = ["ConfigError", "UserError"]
