"""Two processes of gloo on the CPU do what one process does with the whole batch.

They are forked once and call each function in `ON_TWO`. It is one test, so that several test processes do not start
them again; it fails with the tracebacks that they leave in the folder.
"""

import argparse
import copy
import io
import math
import traceback
from datetime import timedelta

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing
from timm.optim import create_optimizer_v2, list_optimizers
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask, TrainingTask
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import nn
from torch.distributed.tensor import DTensor

import hyena_vision  # noqa: F401
from hyena_vision.training import distributed as parallel
from hyena_vision.training.errors import ConfigError

CPU = torch.device("cpu")
KINDS = ("ddp", "fsdp")
HYENA_1D, HYENA_2D = "hyena_vit_tiny", "hyena2d_vit_tiny"
ON_TWO = []


def arguments(**changes) -> argparse.Namespace:
    defaults = {"no_ddp_bb": False, "opt": "adamw", "opt_kwargs": {}, "clip_grad": None, "clip_mode": "norm"}
    return argparse.Namespace(**{**defaults, **changes})


def create_model(name: str = HYENA_1D, seed: int = 0, embed_dim: int = 30) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, img_size=32, patch_size=8, embed_dim=embed_dim, depth=2, num_classes=7)


def create_task(kind: str, model: nn.Module, ema: bool = False, cls: type = ClassificationTask) -> TrainingTask:
    """Task of one process ("plain") or of both."""
    teacher = () if cls is ClassificationTask else (create_model(HYENA_2D, seed=5, embed_dim=16),)
    torch.manual_seed(6)  # of a projection
    task = cls(model, *teacher, nn.CrossEntropyLoss(), verbose=False)
    if ema:
        task.setup_ema(decay=0.5)
    if kind != "plain":
        parallel.distribute(task, arguments(), CPU, fsdp=kind == "fsdp")
    return task.train()


def batch(kind: str, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole batch, or the half of this process."""
    generator = torch.Generator().manual_seed(step)
    input, target = torch.randn(8, 3, 32, 32, generator=generator), torch.randint(0, 7, (8,), generator=generator)
    return (input, target) if kind == "plain" else (input[dist.get_rank() :: 2], target[dist.get_rank() :: 2])


def gradients(task: TrainingTask) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in task.get_trainable_module().parameters()]
    return [(grad.full_tensor() if isinstance(grad, DTensor) else grad).clone() for grad in found]


def assert_same(first, second, tolerance: float = 1e-6, path: str = "") -> None:
    """Compare nested states: keys in order, types and plain values, shapes and types of tensors, and their values."""
    if isinstance(second, dict):
        assert list(first) == list(second), f"{path}: {list(first)}, {list(second)}"
        for key in second:
            assert_same(first[key], second[key], tolerance, f"{path}/{key}")
    elif isinstance(second, list | tuple):
        assert_same(dict(enumerate(first)), dict(enumerate(second)), tolerance, path)
    elif isinstance(second, torch.Tensor):
        kinds = [(type(tensor), tensor.dtype, tensor.shape) for tensor in (first, second)]
        assert kinds[0] == kinds[1], f"{path}: {kinds}"
        assert torch.allclose(first, second, rtol=0, atol=tolerance), f"{path}: {(first - second).abs().max()}"
    else:
        assert first == second, f"{path}: {first}, {second}"


def start(kind: str, cls: type, seed: int = 0) -> tuple[TrainingTask, torch.optim.Optimizer]:
    task = create_task(kind, create_model(seed=seed), ema=True, cls=cls)
    model = unwrap_model(task.get_trainable_module())
    # With a small eps the sign of a gradient of zero would decide
    return task, create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, eps=1e-3)


def train(kind: str, task: TrainingTask, optimizer: torch.optim.Optimizer, step: int) -> list[torch.Tensor]:
    """Make an update, and return the logits of the model and of its average."""
    task.train()
    task(*batch(kind, step))["loss"].backward()
    dispatch_clip_grad(task.get_clip_parameters(), value=0.1, mode="norm")
    optimizer.step()
    optimizer.zero_grad()
    task.update_ema(step=step + 1)
    with torch.inference_mode():
        return [task.get_eval_model(ema=ema).eval()(batch("plain")[0]).clone() for ema in (False, True)]


def through_file(state: dict) -> dict:
    """What the first process writes and both read."""
    torch.save(parallel.full_state(state), file := io.BytesIO())
    return torch.load(io.BytesIO(parallel.gather_objects(file.getvalue())[0]))


def checkpoint(task: TrainingTask, optimizer: torch.optim.Optimizer) -> dict:
    states = task.get_checkpoint_state(), task.get_checkpoint_state(ema=True), {"optimizer": optimizer.state_dict()}
    return {name: state for states in states for name, state in states.items()}


def whole(state: dict) -> dict:
    """Copy of what the first process would write now; the others have only parts of it."""
    return copy.deepcopy(parallel.full_state(state))


def load(task: TrainingTask, optimizer: torch.optim.Optimizer, saved: dict) -> None:
    for ema, suffix in ((False, ""), (True, "_ema")):
        parallel.load_model(task.get_eval_model(ema=ema), saved[f"state_dict{suffix}"])
        own = saved.get(f"task_state{suffix}", {})
        task.load_task_state(parallel.shard_like(own, task.get_task_state(ema=ema)), ema=ema)
    parallel.load_optimizer(optimizer, saved["optimizer"])


@ON_TWO.append
def flags_objects_and_options(rank):
    assert parallel.any_process(False, rank == 0, rank == 1, True, device=CPU) == (False, True, True, True)
    assert parallel.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    parallel.distribute(task := create_task("plain", nn.BatchNorm1d(1)), arguments(no_ddp_bb=True), CPU)
    assert not task.get_trainable_module().broadcast_buffers


@ON_TWO.append
def logits_loss_and_gradients(rank):
    """The processes start from different weights: those of the first count."""
    everything = {"checkpointing", "channels_last", "distilled"}
    for variants, kinds in ((set(), KINDS), (everything, ["fsdp"]), ({"bfloat16"}, ["fsdp"])):
        results = {}
        for kind in ("plain", *kinds):
            model = create_model(HYENA_2D, seed=0 if kind == "plain" else rank)
            model.set_grad_checkpointing("checkpointing" in variants)
            if "channels_last" in variants:
                model.to(memory_format=torch.channels_last)
            cls = LogitDistillationTask if "distilled" in variants else ClassificationTask
            task = create_task(kind, model, cls=cls)
            with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in variants):
                result = task(*batch(kind))
            result["loss"].backward()
            logits = parallel.gather_objects(result["output"].detach())
            logits = logits[0] if kind == "plain" else torch.stack(logits, 1).flatten(0, 1)
            losses = torch.tensor(parallel.gather_objects(result["loss"].item()))
            results[kind] = [logits, losses.mean(), gradients(task)]
        for kind in kinds:
            tolerance = 5e-3 if "bfloat16" in variants else 1e-6
            assert_same(results[kind], results["plain"], tolerance, f"{variants} {kind}")


@ON_TWO.append
def gradients_of_an_update(rank):
    """Accumulated over two batches, the largest of them, and clipped."""
    results = {}
    for kind in ("plain", *KINDS):
        task = create_task(kind, create_model())
        parameters, (input, target) = list(task.get_clip_parameters()), batch(kind)
        for half in (0, 1):
            with parallel.synchronizes(task, need_update=half == 1):
                (task(input[half::2], target[half::2])["loss"] / 2).backward()
            norms = parallel.gather_objects([p.grad.norm().item() for p in parameters if p.grad is not None])
            if half == 0 and kind != "plain":  # nothing was sent: DDP has its own gradients, FSDP keeps them elsewhere
                assert norms == [[], []] if kind == "fsdp" else norms[0] != norms[1]
        results[kind] = [gradients(task)]
        assert parallel.largest_gradient(parameters, CPU) == max(g.abs().max().item() for g in results[kind][0])
        norm, original = torch.nn.utils.get_total_norm(results[kind][0]).item(), [p.grad.clone() for p in parameters]
        # The norm of each shard is less than 0.9 of the whole
        for mode, value in (("norm", 0.1 * norm), ("norm", 0.9 * norm), ("norm", 10 * norm), ("value", 1e-3)):
            for parameter, gradient in zip(parameters, original, strict=True):
                parameter.grad.copy_(gradient)
            dispatch_clip_grad(parameters, value, mode)
            results[kind].append(gradients(task))
        assert_same(results[kind], results["plain"], path=kind)
    for value in (math.inf, math.nan):  # in a shard of one process
        if rank == 1:
            parameters[-1].grad.to_local()[0] = value
        assert str(parallel.largest_gradient(parameters, CPU)) == str(value)


@ON_TWO.append
def checkpoints(rank):
    """One update and, after loading its checkpoint on other processes, another."""
    changes = [("plain", "plain"), ("fsdp", "ddp"), ("ddp", "fsdp")]
    results = {}
    for cls, kinds in ((ClassificationTask, changes), (FeatureDistillationTask, [changes[0], ("fsdp", "fsdp")])):
        for before, after in kinds:
            task, optimizer = start(before, cls)
            logits, saved = train(before, task, optimizer, step=1), through_file(checkpoint(task, optimizer))
            task, optimizer = start(after, cls, seed=1)
            load(task, optimizer, copy.deepcopy(saved))  # which the optimizer would change
            loaded = whole(checkpoint(task, optimizer))
            trained = train(after, task, optimizer, step=2), whole(checkpoint(task, optimizer))
            results[cls, before, after] = [saved, [logits, trained[0]], [loaded, trained[1]]]
            if after == "fsdp":
                check_shards(task, optimizer)
    for (cls, before, after), (saved, logits, states) in results.items():
        expected, path = results[cls, "plain", "plain"], f"{cls} {before} {after}"
        assert_same(logits, expected[1], path=path)
        if rank == 0:
            assert_same(states[0], saved, 0, path)
            assert_same(states, expected[2], path=path)


def check_shards(task: TrainingTask, optimizer: torch.optim.Optimizer) -> None:
    shards = [name for name, part in task.get_eval_model().named_modules() if type(part).__name__.startswith("FSDP")]
    assert shards == ["", "blocks.0", "blocks.1"]
    local = [value.to_local() for entry in optimizer.state.values() for value in entry.values() if value.ndim]
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in local), "a shard keeps the whole tensor"
    assert not any(isinstance(value, DTensor) for value in getattr(task, "teacher", nn.Identity()).parameters())
    with pytest.raises(RuntimeError, match=r"size mismatch for head.weight: .*\[7, 16\].*\[7, 30\]"):
        parallel.load_model(task.get_eval_model(), create_model(embed_dim=16).state_dict())


@ON_TWO.append
def optimizers(rank):
    """Two updates of a small net; before the second the state is put together and loaded anew."""
    results = {name: [] for name in [*sorted({*parallel.FSDP_OPTIMIZERS} & {*list_optimizers()}), "lookahead_adamw"]}
    for name in results:
        for kind in ("fsdp", "plain"):
            torch.manual_seed(0)
            task = create_task(kind, nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1, bias=False)).double())
            input, saved = torch.randn(8, 3).double(), None
            for update in (1, 2):
                optimizer = create_optimizer_v2(task.trainable_module, name, lr=1e-2, weight_decay=0.05)
                if update == 2:
                    parallel.load_optimizer(optimizer, through_file(saved) if kind == "fsdp" else saved)
                optimizer.zero_grad()
                output = task.trainable_module(input if kind == "plain" else input[rank::2])
                (10 * output.square().mean()).backward()  # large enough for lamb to clip
                optimizer.step()
                if hasattr(optimizer, "sync_lookahead"):
                    optimizer.sync_lookahead()
                saved = optimizer.state_dict()
            results[name].append([whole(saved), whole(task.get_checkpoint_state())])
    if rank == 0:
        for name, states in results.items():
            assert_same(*states, 1e-12, name)


@ON_TWO.append
def refusals(rank):
    muon, caution, agc = {"opt": "muon"}, {"opt_kwargs": {"caution": True}}, {"clip_grad": 1.0, "clip_mode": "agc"}
    task = create_task("plain", nn.Sequential(nn.Linear(1, 1)))
    for changes, message in ((muon, "--opt muon"), (caution, "not cautious"), (agc, "--clip-mode norm or value")):
        with pytest.raises(ConfigError, match=message):
            parallel.distribute(task, arguments(**changes), CPU, fsdp=True)
    task.trainable_module.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match="cannot shard Sequential: .*scalar"):
        parallel.distribute(task, arguments(), CPU, fsdp=True)
    task = create_task("plain", nn.Linear(1, 1, dtype=torch.bfloat16), ema=True)
    task.trainable_module_ema.stochastic_rounding = True  # as newer timm does
    with pytest.raises(ConfigError, match="bfloat16 weights"):
        parallel.distribute(task, arguments(), CPU, fsdp=True)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=60), world_size=2, rank=rank)
    errors = {}
    for function in ON_TWO:
        try:
            function(rank)
        except (Exception, pytest.fail.Exception):
            errors[function.__name__] = traceback.format_exc()
    torch.save(errors, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_on_two_processes(tmp_path):
    torch.multiprocessing.start_processes(work, (str(tmp_path),), 2, start_method="fork")  # torch is imported already
    errors = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert not any(errors), "\n".join(f"{name}: {text}" for error in errors for name, text in error.items())


def test_one_process():
    parallel.distribute(task := create_task("plain", create_model()), arguments(), CPU)
    assert type(task.get_trainable_module()).__name__ == "HyenaViT"
    assert (parallel.any_process(True, False, device=CPU), parallel.gather_objects(1)) == ((True, False), [1])
    with pytest.raises(ConfigError, match="torchrun"):
        parallel.distribute(task, arguments(), CPU, fsdp=True)
    assert parallel.full_state(state := {"list": [torch.ones(1), (2, None)]}) == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_largest_gradient_does_not_overflow(dtype):
    parameters = [nn.Parameter(torch.zeros(100, dtype=dtype)) for _ in range(3)]  # the last has no gradient
    assert parallel.largest_gradient(parameters, CPU) == 0
    parameters[0].grad = parameters[1].grad = torch.full((100,), -60_000, dtype=dtype)
    assert parallel.largest_gradient(parameters, CPU) == pytest.approx(60_000, rel=1e-2)
    for value in (math.inf, math.nan):
        parameters[0].grad[50] = value
        assert str(parallel.largest_gradient(parameters, CPU)) == str(value)
