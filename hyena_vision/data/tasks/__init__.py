"""Generated tasks that need the whole image: `hyena/NAME` of `hyena_vision.data.create_dataset`."""

import difflib
from typing import Any

from hyena_vision.data.tasks.drawn import DrawnDataset
from hyena_vision.data.tasks.far_digits import FarDigits
from hyena_vision.data.tasks.pathfinder import Pathfinder
from hyena_vision.data.tasks.spatial_recall import SpatialRecall, mean_predictor_mse

TASKS: dict[str, type[DrawnDataset]] = {task.name: task for task in (Pathfinder, FarDigits, SpatialRecall)}


def create_task(name: str, split: str = "train", **kwargs: Any) -> DrawnDataset:
    """Create the data set of a task.

    Args:
        name: Of the task, with its settings behind a colon: `pathfinder`, `pathfinder:dashes=9,seed=1`.
        split: `train`, `validation` or `test`.
        **kwargs: Arguments of `DrawnDataset`.

    Raises:
        ValueError: A task or setting that there is not, or a wrong value of one.
    """
    kind, settings = _parse(name)
    return kind(split, **settings, **kwargs)


def target_channels(name: str) -> int | None:
    """Return how many channels the targets of a data set have, where they are pictures; None for class indices.

    Args:
        name: As of `hyena_vision.data.create_dataset`; None for what is no task, too.
    """
    if not name.lower().startswith("hyena/"):
        return None
    try:
        kind, settings = _parse(name.lower().removeprefix("hyena/"))
    except ValueError:  # said when it is opened
        return None
    return kind.target_channels(settings)


def _parse(name: str) -> tuple[type[DrawnDataset], dict[str, Any]]:
    """Return the task of a name, and the settings in it."""
    name, _, text = name.partition(":")
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"expected hyena/ and one of {', '.join(TASKS)}, got {name!r}{hint}")
    settings = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"settings of hyena/{name}: expected key=value, got {pair!r}")
        if key not in (known := ("seed", *TASKS[name].settings)):
            raise ValueError(f"hyena/{name} has the settings {', '.join(known)}, got {key!r}")
        settings[key] = _value(value)
    return TASKS[name], settings


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdigit() else text


__all__ = [
    "TASKS",
    "DrawnDataset",
    "FarDigits",
    "Pathfinder",
    "SpatialRecall",
    "create_task",
    "mean_predictor_mse",
    "target_channels",
]
