"""Loaders: what they give follows from seed, process, epoch and position, and from nothing else."""

import os
import pickle
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset
from timm.data.readers.reader import Reader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from trainer import arguments

from hyena_vision.data import DataError, create_dataset
from hyena_vision.training import seeded_loader
from hyena_vision.training.bad_images import BadImages
from hyena_vision.training.pipeline import create_loaders
from hyena_vision.training.seeded_loader import SeededBatchSampler, TrainLoader
from hyena_vision.training.seeds import mix_seed

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
CONFIG |= {"crop_mode": "center"}
HARD = ["--aa", "rand-m9-mstd0.5-inc1", "--reprob", "0.9", "--mixup", "0.8", "--cutmix", "1.0", "--color-jitter", "0.4"]


class Damaged(torch.utils.data.Dataset):
    """The first 40 digits; those of some indices cannot be read."""

    def __init__(self, split: str, bad: tuple[int, ...] = ()):
        self.images = create_dataset("sklearn/digits", split=split, input_img_mode="RGB")
        self.bad, self.transform, self.class_to_idx = bad, None, self.images.class_to_idx
        self.input_img_mode = "RGB"

    def __getitem__(self, index: int) -> tuple:
        if index in self.bad:
            raise DataError(f"cannot read image {index}.png: truncated")
        image, target = self.images[index]
        return (image if self.transform is None else self.transform(image)), target

    def __len__(self) -> int:
        return 40


class Stream(Reader):
    """A stream of 20 images, split among the workers."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        order = numpy.random.default_rng(self.epoch).permutation(20)
        if info:  # each worker shuffles its own share by its seed
            order = numpy.random.default_rng(info.seed).permutation(order[info.id :: info.num_workers])
        for index in order:
            yield Image.linear_gradient("L").rotate(10 * index).convert("RGB"), int(index % 10)

    def __len__(self) -> int:
        return 20

    def _filename(self, index, basename=False, absolute=False):
        return str(index)


def loaders(*argv: str, datasets=None, rank: int = 0, distributed: bool = False):
    args = arguments("--dataset", "sklearn/digits", "-j", "0", "-b", "8", *argv, rank=rank, distributed=distributed)
    bad_images = BadImages()
    datasets = datasets or (Damaged("train"), Damaged("val"))
    return create_loaders(args, CONFIG, datasets, 10, torch.device("cpu"), bad_images), bad_images


def epoch_of(loader: TrainLoader, epoch: int, first: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.begin(epoch, first)
    return [(images.clone(), targets.clone()) for images, targets in loader]


def assert_equal(first: list, second: list) -> None:
    assert len(first) == len(second) > 0
    for (images, targets), (others, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images, others) and torch.equal(targets, other_targets)


@pytest.mark.parametrize("more", [[], ["--no-prefetcher"], ["--mixup", "0", "--cutmix", "0", "--aug-splits", "2"]])
def test_an_epoch_begun_anywhere_gives_what_the_whole_one_gives(more):
    loader = loaders(*HARD, *more)[0].train
    whole = epoch_of(loader, 3)
    assert len(whole) == len(loader) == 5
    others = [loaders(*HARD, *more, "-j", str(workers))[0].train for workers in (0, 1, 2)]
    torch.manual_seed(7)  # the state of the process has no part in it
    for other in others:
        assert_equal(epoch_of(other, 3, first=2), whole[2:])
        assert_equal(epoch_of(other, 3), whole)
        assert epoch_of(other, 3, first=5) == []


def test_epochs_seeds_and_processes_differ():
    made = [
        epoch_of(loaders(*HARD)[0].train, 0),
        epoch_of(loaders(*HARD)[0].train, 1),
        epoch_of(loaders(*HARD, "--seed", "1")[0].train, 0),
        epoch_of(loaders(*HARD, "--seed", "2147483647")[0].train, 0),
        epoch_of(loaders(*HARD, rank=1)[0].train, 0),
    ]
    first = [epoch[0][0] for epoch in made]
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])
    assert len({mix_seed(*words) for words in ((1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (12,))}) == 5


def test_seeds_and_order_change_with_the_epoch():
    def items(sampler, epoch: int) -> list[tuple[int, int]]:
        batches = SeededBatchSampler(BatchSampler(sampler, 4, False), 0, 0)
        batches.epoch = epoch
        return [item for batch in batches for item in batch]

    first, second = (items(SequentialSampler(range(8)), epoch) for epoch in range(2))
    assert not {seed for _, seed in first} & {seed for _, seed in second}
    assert len({seed for _, seed in first}) == 8
    first, second = ([index for index, _ in items(RandomSampler(range(40)), epoch)] for epoch in range(2))
    assert first != second


def test_workers_and_epochs_of_a_stream_have_seeds_of_their_own(monkeypatch):
    def draws(worker: int) -> set[float]:
        monkeypatch.setattr(seeded_loader, "get_worker_info", lambda: SimpleNamespace(id=worker))
        return {torch.rand(()).item() for _ in seeded_loader.SeededIterableDataset([0, 1], 0, 0)}

    assert len(draws(0) | draws(1)) == 4
    stream, seeds = TrainLoader(DataLoader(IterableImageDataset(None, reader=Stream()), 4), 0, 0), set()
    for epoch in range(2):
        stream.begin(epoch)
        iter(stream)
        seeds.add(stream.batches.generator.initial_seed())
    assert len(seeds) == 2


def test_reports_never_block_and_none_is_lost(tmp_path):
    bad_images, lines = BadImages(), []
    for index in range(3000):  # a pipe would be full
        bad_images.report(f"cannot read image {index}.png: " + "x" * 100)
    copy = pickle.loads(pickle.dumps(bad_images))  # what a spawned worker has
    copy.report("line\nbreak")
    bad_images.collect(lines.append)
    bad_images.collect(lines.append)
    assert len(lines) == len(set(lines)) == 3001 and lines[-1] == "line\nbreak"
    file = bad_images.file
    del copy
    assert os.path.exists(file)
    del bad_images
    assert not os.path.exists(file)


def test_each_image_comes_once_and_is_known_by_its_batch():
    loader = loaders("--no-aug")[0].train
    for epoch in range(2):
        loader.begin(epoch)
        seen = []
        for number, (_, targets) in enumerate(loader):
            batch = loader.images_of(number)
            assert [loader.dataset.dataset.dataset.images[index][1] for index in batch] == targets.tolist()
            seen += batch
        assert sorted(seen) == list(range(40)) != seen
    assert loader.images_of(99) is None


@pytest.mark.parametrize("workers", ["0", "2"])
def test_iterable_data_sets_begin_anywhere_as_well(workers):
    def made() -> TrainLoader:
        datasets = [IterableImageDataset(None, reader=Stream()) for _ in range(2)]
        return loaders(*HARD, "-j", workers, "-b", "4", datasets=datasets)[0].train

    straight = made()
    epochs = [epoch_of(straight, epoch) for epoch in range(2)]
    assert not torch.equal(epochs[0][0][1], epochs[1][0][1])
    assert_equal(epoch_of(made(), 1), epochs[1])
    assert_equal(epoch_of(made(), 1, first=3), epochs[1][3:])
    assert straight.images_of(0) is None


def test_mixing_stops_in_workers_that_run_already():
    loader = loaders("--mixup", "0.8", "--smoothing", "0", "-j", "1")[0].train
    assert not all(targets.max(1).values.eq(1).all() for _, targets in epoch_of(loader, 0))
    loader.stop_mixup()
    assert all(targets.max(1).values.eq(1).all() for _, targets in epoch_of(loader, 1))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_bad_images_are_left_out_and_reported_once_each(workers):
    datasets = Damaged("train", bad=(3, 4, 39)), Damaged("val", bad=(0, 7))
    made, bad_images = loaders("--on-bad-image", "skip", "-j", workers, "--no-aug", datasets=datasets)
    clean = loaders("--no-aug", "-j", workers)[0]
    lines = []
    for epoch in range(2):
        assert len(epoch_of(made.train, epoch)) == 5
    bad_images.collect(lines.append)
    assert sorted(lines) == [f"cannot read image {index}.png: truncated" for index in (3, 39, 4)]
    assert bad_images.paths == set(lines)
    # In training the next image that can be read stands in: 5 for 3 and 4, 0 for the last
    expected = {3: 5, 4: 5, 39: 0}
    for (images, _), (others, _), number in zip(
        epoch_of(made.train, 0), epoch_of(clean.train, 0), range(5), strict=True
    ):
        for index, image, other in zip(made.train.images_of(number), images, others, strict=True):
            assert torch.equal(image, other) == (index not in expected)
    # In validation nothing stands in: the target -1 is not counted
    targets = torch.cat([targets for _, targets in made.eval])
    truth = torch.cat([targets for _, targets in clean.eval])
    assert targets[[0, 7]].tolist() == [-1, -1]
    assert torch.equal(targets[1:7], truth[1:7]) and torch.equal(targets[8:], truth[8:])
    bad_images.collect(lines.append)
    assert len(lines) == 5


def test_nothing_but_bad_images_ends():
    made, _ = loaders("--on-bad-image", "skip", datasets=(Damaged("train", bad=tuple(range(40))), Damaged("val")))
    with pytest.raises(DataError, match="100 images in a row.*png"):
        epoch_of(made.train, 0)


def test_scheduled_sizes_begin_anywhere_and_replace_bad_images():
    pytest.importorskip("timm.data.scheduled_sampler", reason="older timm has no schedule of sizes")
    sizes = ["--train-img-sizes", "8", "16", "24", "--train-batch-sizes", "12", "8", "4", *HARD[:4]]
    made, bad_images = loaders(*sizes, "--on-bad-image", "skip", datasets=(Damaged("train", bad=(5,)), Damaged("val")))
    whole = epoch_of(made.train, 2)
    assert {(len(images), images.shape[-1]) for images, _ in whole} <= {(12, 8), (8, 16), (4, 24)}
    assert len({len(images) for images, _ in whole}) > 1
    assert_equal(epoch_of(made.train, 2, first=2), whole[2:])
    assert all(isinstance(index, int) for index in made.train.images_of(2))
    assert made.batch_size == 8
    bad_images.collect(print)
    assert len(bad_images.paths) == 1
