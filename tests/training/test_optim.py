import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from trainer import arguments

from hyena_vision.layers import ImplicitFilter
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.optim import base_lr, create_optimizer, create_scheduler, split_filter_groups


@pytest.fixture
def model():
    return timm.create_model("hyena2d_iso_tiny", embed_dim=16, depth=2, filter_dim=8)


@pytest.fixture
def filters(model) -> set[int]:
    modules = [module for module in model.modules() if isinstance(module, ImplicitFilter)]
    found = {id(parameter) for module in modules for parameter in module.parameters()}
    assert len(modules) == 2 and found
    return found


def adamw(*argv: str) -> Arguments:
    return arguments("--opt", "adamw", "--weight-decay", "0.1", *argv)


def make_optimizer(args: Arguments, model: torch.nn.Module) -> torch.optim.Optimizer:
    return create_optimizer(args, model, base_lr(args, args.batch_size))


def rates(optimizer, ids: set[int], key: str) -> tuple[set[float], set[float]]:
    """Values of a key in the groups of the filters and in those of the rest."""
    own, rest = set(), set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            (own if id(parameter) in ids else rest).add(group[key])
    return own, rest


def test_filters_have_their_own_rate_and_no_decay(model, filters):
    optimizer = make_optimizer(args := adamw("--lr", "1e-2", "--filter-lr-scale", "0.1"), model)
    assert rates(optimizer, filters, "weight_decay") == ({0.0}, {0.0, 0.1})
    scheduler, epochs = create_scheduler(args, optimizer, 10, False)
    assert epochs == 300
    # Warm-up starts at 1e-5 and ends at the full rate
    own, rest = rates(optimizer, filters, "lr")
    assert [*own, *rest] == pytest.approx([1e-6, 1e-5])
    scheduler.step(5)
    own, rest = rates(optimizer, filters, "lr")
    assert max(rest) == pytest.approx(1e-2, rel=1e-2) and max(own) == pytest.approx(0.1 * max(rest))
    parameters = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
    assert parameters == sorted(map(id, model.parameters()))


def test_first_rate_is_scaled_without_warmup_and_without_a_schedule(model, filters):
    for argv in (["--warmup-epochs", "0"], ["--sched", "none"]):
        args = adamw("--lr", "1e-2", "--filter-lr-scale", "0.1", *argv)
        optimizer = make_optimizer(args, model)
        create_scheduler(args, optimizer, 10, False)
        own, rest = rates(optimizer, filters, "lr")
        assert [*own, *rest] == pytest.approx([1e-3, 1e-2])


def test_filter_rate_multiplies_layer_decay(model, filters):
    plain = param_groups_layer_decay(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in plain for p in group["params"]}
    assert len(set(scale.values())) > 2
    optimizer = make_optimizer(adamw("--lr", "1", "--layer-decay", "0.5", "--filter-lr-scale", "0.1"), model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            factor = 0.1 if id(parameter) in filters else 1
            assert group["lr_scale"] == pytest.approx(factor * scale[id(parameter)])


def test_models_without_filters_keep_their_groups():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2)
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    assert split_filter_groups(model, groups, 0.1) == groups


def test_base_rate_follows_the_batch_as_in_timm():
    def rate(*argv: str) -> float:
        args = arguments("--lr-base", "0.1", *argv, world_size=4)
        return base_lr(args, args.batch_size)

    assert rate("-b", "64") == pytest.approx(0.1)
    assert rate("-b", "64", "--grad-accum-steps", "4") == pytest.approx(0.4)
    assert rate("-b", "256", "--opt", "adamw") == pytest.approx(0.2)
    assert rate("-b", "256", "--opt", "adamw", "--lr-base-scale", "linear") == pytest.approx(0.4)
    assert rate("-b", "256", "--lr", "0.3") == 0.3


def test_hybrid_optimizer_gets_its_fallback_list(model):
    args = adamw("--opt-kwargs", "fallback_list=['head.*']", "--opt", "muon")
    optimizer = make_optimizer(args, model)
    fallback = {id(p) for group in optimizer.param_groups if group.get("use_fallback") for p in group["params"]}
    assert fallback == {id(p) for p in model.head.parameters()}


def test_resumed_optimizer_keeps_the_schedule_of_the_arguments(model):
    args = adamw("--lr", "1e-2", "--warmup-epochs", "0", "--epochs", "10")
    first = make_optimizer(args, model)
    scheduler, _ = create_scheduler(args, first, 10, False)
    scheduler.step(5)
    second = create_optimizer(args, model, 2e-2)
    scheduler, _ = create_scheduler(args, second, 10, False)
    second.load_state_dict(first.state_dict())
    scheduler.step(5)
    assert second.param_groups[0]["lr"] == pytest.approx(2 * first.param_groups[0]["lr"])
    assert first.param_groups[0]["lr"] == pytest.approx(5e-3)
