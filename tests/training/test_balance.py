"""Weights and draws that make classes of unequal size count the same."""

import tarfile

import pytest
import torch
from PIL import Image
from torch import nn

from hyena_vision.data import Digits, create_dataset
from hyena_vision.training.balance import BalancedSampler, WeightedCrossEntropy, balanced_weights, labels_of
from hyena_vision.training.errors import ConfigError

LABELS = [0] * 80 + [2] * 15 + [3] * 5


def test_weights_make_classes_equal():
    weights = balanced_weights(LABELS, 5)
    assert weights.tolist() == pytest.approx([100 / 240, 0, 100 / 45, 100 / 15, 0])
    assert sum(weights[label] for label in LABELS) == pytest.approx(100)
    logits, target = torch.randn(100, 5), torch.tensor(LABELS)
    for smoothing in (0.0, 0.1):
        loss = WeightedCrossEntropy(weights, smoothing)(logits, target)
        each = nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        of_class = [each[target == label].mean() for label in (0, 2, 3)]
        assert loss == pytest.approx((sum(of_class) / 3).item(), rel=1e-5)
    hard = nn.functional.one_hot(target, 5).float()
    assert WeightedCrossEntropy(weights)(logits, hard) == pytest.approx(WeightedCrossEntropy(weights)(logits, target))


def test_sampler_draws_all_classes_equally_often_and_anew_in_each_epoch():
    sampler = BalancedSampler(LABELS * 50, seed=3)
    drawn = [list(sampler)]
    assert len(drawn[0]) == len(sampler) == 5000 and list(sampler) == drawn[0]
    counts = torch.bincount(torch.tensor([(LABELS * 50)[index] for index in drawn[0]]))
    assert counts[1] == 0 and all(abs(counts[label] - 5000 / 3) < 150 for label in (0, 2, 3))
    assert len(set(drawn[0])) > 1500  # not one image over and over
    sampler.set_epoch(1)
    assert list(sampler) != drawn[0]
    assert list(BalancedSampler(LABELS * 50, seed=4)) != drawn[0]


def test_processes_share_the_draw_of_an_epoch():
    whole = list(BalancedSampler(LABELS, seed=3))
    parts = [list(BalancedSampler(LABELS, 3, rank, 2)) for rank in range(2)]
    assert [index for pair in zip(*parts, strict=True) for index in pair] == whole
    assert [len(BalancedSampler(LABELS, 3, rank, 3)) for rank in range(3)] == [34] * 3


def test_labels_of_a_data_set(tmp_path):
    for label, count in (("a", 1), ("b", 2)):
        for index in range(count):
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / "images" / label / f"{index}.png")
    with tarfile.open(tmp_path / "images.tar", "w") as file:
        file.add(tmp_path / "images", ".")
    in_tar = create_dataset("", root=str(tmp_path / "images.tar"), split="train")
    in_tar.target_transform = {0: 1, 1: 0}.__getitem__  # as where classes have another order
    for dataset in (Digits("validation"), in_tar):
        assert labels_of(dataset, "class-weights") == [dataset[index][1] for index in range(len(dataset))]
    assert labels_of(in_tar, "class-weights") == [1, 0, 0]
    with pytest.raises(ConfigError, match="argument --class-weights: needs .*got a Other"):
        labels_of(type("Other", (torch.utils.data.Dataset,), {})(), "class-weights")
