"""What is optimized: classification with the loss that fits the targets, distillation or conversion by a teacher."""

import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import nn

from hyena_vision.data import target_channels
from hyena_vision.training.arguments import Arguments
from hyena_vision.training.balance import WeightedCrossEntropy
from hyena_vision.training.conversion import MixerTask, ModelTask
from hyena_vision.training.distributed import distribute
from hyena_vision.training.errors import ConfigError, one_line
from hyena_vision.training.meters import CornerMSELoss
from hyena_vision.training.model import create_teacher, place_model
from hyena_vision.training.pipeline import mixup_active


def create_loss(args: Arguments, class_weights: torch.Tensor | None = None) -> nn.Module:
    """Create the training loss: softmax or binary cross entropy, for soft targets where mixup makes them.

    Pictures as targets have the mean squared error.

    Args:
        args: Arguments of the run.
        class_weights: Of `WeightedCrossEntropy`; None for images that weigh the same.
    """
    if target_channels(args.dataset):
        return CornerMSELoss()
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0.0 if mixup_active(args) else args.smoothing,
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
        )
    if class_weights is not None:
        return WeightedCrossEntropy(class_weights, 0.0 if mixup_active(args) else args.smoothing)
    if mixup_active(args):  # the targets are smoothed where they are mixed
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def create_task(
    args: Arguments, model: nn.Module, device: torch.device, class_weights: torch.Tensor | None = None
) -> TrainingTask:
    """Create timm's task around a model: its loss and, for distillation, the teacher.

    Args:
        args: Arguments of the run.
        model: Model to train, on its device.
        device: That device.
        class_weights: Of `create_loss`.

    Raises:
        ConfigError: The teacher does not exist, or model and teacher do not go together.
    """
    criterion = create_loss(args, class_weights).to(device)
    dtype = getattr(torch, args.model_dtype or "float32")
    if args.convert_stage == "mixers":
        return MixerTask(model, device, dtype)
    if args.convert_stage == "model":
        return ModelTask(
            model,
            create_teacher(args, model.num_classes),
            criterion,
            device,
            dtype,
            temperature=args.kd_temperature,
            logit_weight=1.0 if args.distill_loss_weight is None else args.distill_loss_weight,
            token_weight=args.convert_token_weight,
            layer_weight=args.convert_layer_weight,
            task_weight=args.task_loss_weight or 0.0,
        )
    if args.kd_model_name is None:
        return ClassificationTask(model, criterion, device=device, dtype=dtype, verbose=False)
    common = dict(
        student_model=model,
        teacher_model=args.kd_model_name,
        criterion=criterion,
        distill_loss_weight=args.distill_loss_weight,
        task_loss_weight=args.task_loss_weight,
        device=device,
        dtype=dtype,
        verbose=False,
    )
    kinds = {
        "logit": (LogitDistillationTask, dict(loss_type=args.kd_loss_type, temperature=args.kd_temperature)),
        "feature": (
            FeatureDistillationTask,
            dict(student_feature_dim=args.kd_student_feature_dim, teacher_feature_dim=args.kd_teacher_feature_dim),
        ),
        "token": (
            TokenDistillationTask,
            dict(distill_type=args.kd_token_distill_type, temperature=args.kd_temperature),
        ),
    }
    kind, own = kinds[args.kd_distill_type]
    try:
        return kind(**common, **own)
    except (ValueError, TypeError, RuntimeError, AssertionError, OSError, KeyError) as error:
        raise ConfigError(
            f"argument --kd-model-name: cannot distill {args.kd_model_name} into {args.model} "
            f"({args.kd_distill_type}): {one_line(error)}"
        ) from error


def prepare_task(
    args: Arguments, model: nn.Module, device: torch.device, class_weights: torch.Tensor | None = None
) -> tuple[TrainingTask, nn.Module]:
    """Create the task with what the arguments put around it: moving average, compilation, several processes.

    Args:
        args: Arguments of the run.
        model: Model to train, on the CPU.
        device: Device to train on.
        class_weights: Of `create_loss`.

    Returns:
        The task, and its model for validation, which does not synchronize processes.

    Raises:
        ConfigError: Parts that do not go together.
    """
    task = create_task(args, place_model(args, model, device), device, class_weights)
    if args.model_ema:
        ema_device = "cpu" if args.model_ema_force_cpu else None
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup, device=ema_device)
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
    eval_model = task.get_eval_model()  # before it is wrapped
    distribute(task, args, device, fsdp=args.fsdp)
    return task, eval_model
