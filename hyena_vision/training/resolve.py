"""The arguments of a run, resolved once: which process this is, on which device, and read-only from then on."""

import argparse

import torch
from timm.utils.distributed import init_distributed_device_so

from hyena_vision.data import target_channels
from hyena_vision.ops import backend_table
from hyena_vision.training.arguments import Arguments


def resolve(args: argparse.Namespace) -> Arguments:
    """Join the other processes of torchrun, if there are any, and return the arguments as they hold for this process.

    Args:
        args: Of `parse_args`.

    Returns:
        The arguments, with `distributed`, `world_size`, `rank`, `local_rank`, the `device` of this process and, for
        training, the `backends` of it. `given` has those that a checkpoint records: as they were given, the same on
        all processes. Pictures as targets have no accuracy, so their `eval_metric` is the loss.
    """
    process = init_distributed_device_so(args.device)
    device = torch.device(process["device"])
    backends = args.backends if args.eval else chosen_backends(device)
    given = {name: value for name, value in vars(args).items() if name != "trained"} | {"backends": backends}
    own = dict(device=process["device"], local_rank=process["local_rank"], rank=process["global_rank"])
    if target_channels(args.dataset):
        own["eval_metric"] = "loss"
    own |= dict(world_size=process["world_size"], distributed=process["distributed"], backends=backends)
    return Arguments(**{**vars(args), **own, "given": given})


def chosen_backends(device: torch.device) -> str | None:
    """Return what `backend=None` takes on a GPU, in a word that is equal for equal choices; None elsewhere."""
    return backend_table(device).choices if device.type == "cuda" else None
