"""What is optimized: classification with the loss that fits the targets, or distillation from a teacher."""

import argparse

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

from hyena_vision.training.data import mixup_active
from hyena_vision.training.errors import ConfigError, one_line


def create_loss(args: argparse.Namespace) -> nn.Module:
    """Create the training loss: softmax or binary cross entropy, for soft targets where mixup makes them."""
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss:
        return BinaryCrossEntropy(
            smoothing=0.0 if mixup_active(args) else args.smoothing,
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
        )
    if mixup_active(args):  # the targets are smoothed where they are mixed
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()


def create_task(args: argparse.Namespace, model: nn.Module, device: torch.device) -> TrainingTask:
    """Create timm's task around a model: its loss and, for distillation, the teacher.

    Args:
        args: Parsed arguments.
        model: Model to train, on its device.
        device: That device.

    Raises:
        ConfigError: The teacher does not exist, or model and teacher do not go together.
    """
    criterion = create_loss(args).to(device)
    dtype = getattr(torch, args.model_dtype or "float32")
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
