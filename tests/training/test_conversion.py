"""What a converted model learns from its teacher, against the same losses computed by hand."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hyena_vision import replace_attention
from hyena_vision.training.conversion import MixerTask, ModelTask

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=3)
# With positions of all kinds, distillation tokens, and grids that come with each call
MODELS = {
    "vit_tiny_patch16_224": {},
    "vit_medium_patch16_rope_reg1_gap_256": {},
    "deit_tiny_distilled_patch16_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": dict(use_shared_rel_pos_bias=True),
    "vit_small_patch16_dinov3": {},
    "vit_little_patch16_reg4_gap_256": dict(dynamic_img_size=True),
}
CPU = torch.device("cpu"), torch.float32
WEIGHTS = dict(temperature=2.0, logit_weight=1.0, token_weight=0.7, layer_weight=0.3, task_weight=0.0)


def teacher_and_student(name, blocks=(0, 2), **kwargs):
    teacher = timm.create_model(name, **{**TINY, **MODELS.get(name, {}), **kwargs}).eval()
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    nn.init.normal_(teacher.head.weight)  # so that the divergence is not the same both ways
    student = copy.deepcopy(teacher)
    replace_attention(student, blocks=[*blocks], filter_dim=8)
    return teacher, student


def outputs(model, images, modules):
    """What modules give in a forward pass, and what they are given."""
    seen = {}
    hooks = [
        module.register_forward_hook(
            lambda module, args, kwargs, output, key=key: seen.update({key: (args, kwargs, output)}), with_kwargs=True
        )
        for key, module in modules.items()
    ]
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return logits, seen


def error(output, wanted):
    """Of one image after the other, in float64."""
    pairs = [(y.double(), t.double()) for y, t in zip(output, wanted, strict=True)]
    return torch.stack([((y - t) ** 2).sum() / (t**2).sum() for y, t in pairs]).mean()


@pytest.mark.parametrize("name", MODELS)
def test_mixers_get_the_teachers_input_and_learn_its_attention(name):
    teacher, student = teacher_and_student(name)
    images = torch.randn(2, 3, 32, 32)
    logits, seen = outputs(teacher, images, {i: teacher.blocks[i].attn for i in (0, 2)})
    task = MixerTask(student, *CPU)
    assert task.blocks == [0, 2]
    student.train()
    loss = task(images, torch.zeros(2, dtype=torch.int64))["loss"]
    wanted = []
    for index, (args, kwargs, output) in seen.items():
        mixer = student.blocks[index].attn
        grid = {} if mixer.grid_size is not None else {"attn_mask": (4, 4)}
        wanted.append(error(mixer(*args, **{**kwargs, **grid}), output))
    torch.testing.assert_close(loss.double(), sum(wanted) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(task.block_errors(images).double(), torch.stack(wanted), rtol=1e-4, atol=1e-6)
    loss.backward()
    learning = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert learning == {
        f"blocks.{i}.attn.{name}" for i in (0, 2) for name, _ in student.blocks[i].attn.named_parameters()
    }
    assert not any(parameter.requires_grad for parameter in task.teacher.parameters())
    # Outside of the task the student runs as itself
    with torch.no_grad():
        assert (student.eval()(images) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_the_model_learns_logits_last_tokens_and_layers(name):
    teacher, student = teacher_and_student(name)
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    criterion = nn.CrossEntropyLoss()
    with torch.no_grad():
        seen = [outputs(m, images, {**dict(enumerate(m.blocks)), "norm": m.norm}) for m in (student, teacher)]
    (own, mine), (theirs, wanted) = seen
    errors = {key: error(mine[key][2], wanted[key][2]) for key in wanted}
    kl = sum(p * (p / q).log() for p, q in zip((theirs / 2).softmax(-1).T, (own / 2).softmax(-1).T, strict=True)).mean()
    expected = 4 * kl + 0.7 * errors.pop("norm") + 0.3 * sum(errors.values())
    task = ModelTask(student, copy.deepcopy(teacher), criterion, *CPU, **WEIGHTS)
    torch.testing.assert_close(task(images, target)["loss"].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(task.block_errors(images).double(), torch.stack([errors[i] for i in range(3)]))
    task.task_weight = 0.5
    labels = 0.5 * F.cross_entropy(own, target)
    torch.testing.assert_close(task(images, target)["loss"].double(), expected + labels, rtol=1e-4, atol=1e-5)
    task.train()
    task(images, target)["loss"].backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert not task.teacher.training and all(p.grad is None for p in task.teacher.parameters())


@pytest.mark.parametrize("kind", [MixerTask, ModelTask])
def test_compiled_tasks_learn_the_same_and_averages_have_no_hooks(kind):
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        teacher, student = teacher_and_student("vit_tiny_patch16_224", blocks=[0], depth=1)
        task = MixerTask(student, *CPU) if kind is MixerTask else None
        task = task or ModelTask(student, teacher, nn.CrossEntropyLoss(), *CPU, **WEIGHTS)
        task.setup_ema(decay=0.5)
        if compiled:
            task.compile(backend="eager")
        images, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
        task.get_trainable_module().train()
        optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = task(images, target)["loss"]
            loss.backward()
            optimizer.step()
            task.update_ema()
            with torch.no_grad():  # validation in between does not train
                logits = task.get_eval_model()(images)
                average = task.get_eval_model(ema=True)(images)
        losses.append((loss.detach(), logits, average))
        assert not any(module._forward_hooks for module in task.get_eval_model(ema=True).modules())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_a_teacher_that_gives_nothing_has_a_finite_error():
    student = teacher_and_student("vit_tiny_patch16_224")[1]
    nn.init.zeros_(student.originals.layers[0].proj.weight)
    nn.init.zeros_(student.originals.layers[0].proj.bias)
    assert MixerTask(student, *CPU).block_errors(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("kind", [MixerTask, ModelTask])
def test_distributed_tasks_give_the_same_gradients(kind, tmp_path):
    gradients = []
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for distributed in (False, True):
            torch.manual_seed(0)
            teacher, student = teacher_and_student("vit_tiny_patch16_224")
            task = MixerTask(student, *CPU) if kind is MixerTask else None
            task = task or ModelTask(student, teacher, nn.CrossEntropyLoss(), *CPU, **WEIGHTS)
            if distributed:
                task.prepare_distributed()
            for _ in range(2):  # it is the second pass that complains of a parameter without a gradient
                task.get_trainable_module().train()
                task(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))["loss"].backward()
            gradients.append([p.grad for p in student.parameters() if p.requires_grad])
            errors = task.block_errors(torch.randn(2, 3, 32, 32))
            assert errors.shape == (len(task.blocks),)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(gradients[0], gradients[1])
