"""Training on several processes: copies of the model (DDP), or one model in shards (FSDP2) where it is too large."""

import copy
import math
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from timm.task import FeatureDistillationTask, TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from hyena_vision.training.arguments import Arguments
from hyena_vision.training.errors import ConfigError, one_line

# timm's optimizers that update shards as they would whole tensors, alone and under lookahead_. The others mix plain
# and sharded tensors, wait for each other for ever, or take the norm of a shard for that of the tensor, in silence.
FSDP_OPTIMIZERS = """
    adabelief adadelta adagrad adam adamax adamc adamw adamwlegacy adan adanw adopt adoptc adoptw lamb lambc lambcd
    lambcw lambw laprop lapropc lion lionc madgrad madgradw momentum nadam nadamc nadamlegacy nadamw nesterov nesterovw
    radabelief radam radamlegacy radamw rmsprop rmsproptf rmsproptfc sgd sgdc sgdw
""".split()


def any_process(*flags: bool, device: torch.device) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any process. All processes call it together.

    Args:
        *flags: Flags of this process.
        device: Device that the processes communicate from.
    """
    if not dist.is_initialized():
        return flags
    values = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(bool(value) for value in values.tolist())


def gather_objects(value: Any) -> list:
    """Return the values of all processes by rank. All processes call it together."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def lost_peer(error: RuntimeError) -> bool:
    """Return whether an error of a collective says no more than that another process has ended, for its own reason."""
    if not dist.is_initialized():
        return False
    return isinstance(error, dist.DistError) or any(text in str(error) for text in ("closed by peer", "reset by peer"))


def distribute(task: TrainingTask, args: Arguments, device: torch.device, *, fsdp: bool = False) -> None:
    """Prepare a task for training on several processes; on one process without `fsdp`, do nothing.

    With FSDP the blocks of the trainable model and of its moving average become shards, in place, each gathered while
    it runs; a teacher stays whole. What follows from that is the order of a run, which DDP allows too:

    1. the model on its device, in its dtype and layout; weights to start from (`load_state_dict`)
    2. the task; `task.setup_ema`, which copies whole modules only; `task.compile` and `task.compile_ema`
    3. `distribute`
    4. the optimizer, over the sharded parameters
    5. `load_model` and `load_optimizer`, which take whole tensors

    Args:
        task: Task whose `trainable_module` is not distributed yet.
        args: Arguments of the run.
        device: Device of this process.
        fsdp: Whether to shard instead of copying the model to each process.

    Raises:
        ConfigError: Sharding is asked of a single process, or does not go with the model or other arguments.
    """
    if fsdp:
        _check_fsdp(task, args)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        _shard(task, mesh)
        if task.has_ema():
            _shard(task, mesh, ema=True)
    elif dist.is_initialized():
        # Of the short filters: (C, 1, 3, 3), where the stride of the 1 has no meaning
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        buffers = {"broadcast_buffers": False} if args.no_ddp_bb else {}  # newer torch warns of the name
        task.prepare_distributed(device_ids=None if device.type == "cpu" else [device], **buffers)


def _check_fsdp(task: TrainingTask, args: Arguments) -> None:
    if not dist.is_initialized():
        raise ConfigError("--fsdp needs several processes: start the program with torchrun")
    if args.opt.lower().removeprefix("lookahead_") not in FSDP_OPTIMIZERS or args.opt_kwargs.get("caution"):
        known = "such as adamw, lamb, lion, nadamw or sgd, not cautious"
        raise ConfigError(f"--fsdp needs an optimizer that works on parts of tensors, {known}; got --opt {args.opt}")
    if args.clip_grad is not None and args.clip_mode == "agc":
        raise ConfigError("--fsdp needs --clip-mode norm or value; agc compares the norms of whole tensors")
    ema = task.get_trainable_module(ema=True)
    if getattr(ema, "stochastic_rounding", False) and any(p.dtype == torch.bfloat16 for p in ema.parameters()):
        raise ConfigError("--fsdp has no moving average of bfloat16 weights: use --amp in place of --model-dtype")


def _shard(task: TrainingTask, mesh: DeviceMesh, ema: bool = False) -> None:
    """Shard the blocks of a module, then what is left of it."""
    holder = task.get_trainable_module(ema=ema)
    whole = unwrap_model(holder).to(memory_format=torch.contiguous_format)  # FSDP takes no other
    for tensor in [*whole.parameters(), *whole.buffers()]:
        dist.broadcast(tensor.detach(), 0)  # as DDP does: shards of different models would make none
    features = isinstance(task, FeatureDistillationTask)
    # That task calls the student by other methods than forward, and validates it without the projection beside it
    roots = list(whole.children()) if features else [whole]
    try:
        for root in roots:
            for block in _blocks(root):
                fully_shard(block, mesh=mesh)
            fully_shard(root, mesh=mesh)
    except ValueError as error:
        raise ConfigError(f"--fsdp cannot shard {type(whole).__name__}: {one_line(error)}") from error
    if features:
        for method in ("forward_features", "forward_head"):
            register_fsdp_forward_method(whole.student, method)
    if dist.get_backend() != dist.Backend.NCCL:
        for module in whole.modules():
            if isinstance(module, FSDPModule):  # gloo of torch 2.8 gives the sum where the mean is asked
                module.set_force_sum_reduction_for_comms(True)
    if ema:  # timm updates all at once or one by one; torch refuses a list of both shards and whole buffers
        state = whole.state_dict().values()
        holder.foreach = all(isinstance(value, DTensor) for value in state if value.is_floating_point())


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the members of all containers named `blocks`, inner ones first."""
    containers = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "blocks"]
    return [block for container in reversed(containers) for block in container.children()]


def synchronizes(task: TrainingTask, need_update: bool) -> AbstractContextManager:
    """Return the context of one forward and backward pass of an accumulated gradient.

    Args:
        task: Task, distributed or not.
        need_update: Whether an update follows: only then do the processes add their gradients up.
    """
    for module in task.get_trainable_module().modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(need_update, recurse=False)
    return nullcontext() if need_update else task.no_sync()


@torch.no_grad()
def largest_gradient(parameters: Iterable[nn.Parameter], device: torch.device) -> float:
    """Return the largest magnitude in all gradients, NaN if one is NaN: finite just if all are.

    Under DDP and FSDP it is the same on all processes, which call it together after a pass that synchronizes. It waits
    for the device once.

    Args:
        parameters: Parameters; those without gradient are left out.
        device: Device of the result on its way.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    largest = torch.nn.utils.get_total_norm([part for part in parts if part.numel()], math.inf).to(device)
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return largest.item()
    # The maximum of NaN and a number depends on the backend
    pair = torch.stack([largest.nan_to_num(nan=0.0, posinf=math.inf), largest.isnan()])
    dist.all_reduce(pair, dist.ReduceOp.MAX)
    largest, nan = pair.tolist()
    return math.nan if nan else largest


def full_state(value: Any) -> Any:
    """Put the sharded tensors of a state together, for a checkpoint that does not tell how many processes wrote it.

    All processes call it together. Only the first gets the tensors, to keep the memory of the machine.

    Args:
        value: State of a model or optimizer: tensors and plain values in dicts, lists and tuples.

    Returns:
        The same with whole tensors on the CPU in place of sharded ones, None on processes other than the first;
        other values as they are.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if dist.get_rank() == 0 else None
    if isinstance(value, dict):
        result = copy.copy(value)  # keeps the order, and the version numbers in the state of a module
        result.update((key, full_state(item)) for key, item in value.items())
        return result
    if isinstance(value, list | tuple):
        return type(value)(full_state(item) for item in value)
    return value


def shard_like(value: Any, like: Any) -> Any:
    """Shard the whole tensors of a state as those of another state are; each process has the whole state.

    Args:
        value: Whole tensors and plain values in dicts.
        like: A tensor, or a dict with the same keys; what is missing there stays whole, as do plain tensors.
    """
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, shard_like(item, like.get(key))) for key, item in value.items() if isinstance(like, dict))
        return result
    # Where shapes differ, load_state_dict says so
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        # Copied, as torch 2.8 gives a view, which would keep the memory of the whole tensor
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()
    return value


def load_model(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a model that is plain, compiled, wrapped for DDP, or sharded.

    Args:
        module: Model.
        state: State of the model without wrappers, the same on all processes.

    Raises:
        RuntimeError: It is of another model.
    """
    module = unwrap_model(module)
    module.load_state_dict(shard_like(state, module.state_dict()))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, with whole tensors, into one whose parameters are plain or sharded.

    Args:
        optimizer: Optimizer.
        state: State of an optimizer of the same model, the same on all processes.

    Raises:
        ValueError: It is of another model.
    """
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    entries = {
        index: {name: shard_like(item, parameters.get(index)) for name, item in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})
