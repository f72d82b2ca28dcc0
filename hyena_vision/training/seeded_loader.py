"""Loaders whose batches follow from seed, epoch and position alone, so that an epoch can be begun in its middle."""

import collections
import os
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from timm.data import FastCollateMixup
from timm.data.loader import PrefetchLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

from hyena_vision.training.bad_images import BadImages, TolerantDataset
from hyena_vision.training.seeds import ERASING, ORDER, SAMPLE, mix_seed, mix_seeds, seed_generators

_RECENT_BATCHES = 1024  # more than workers hold in advance


class SeededDataset(Dataset):
    """A data set indexed by (index, seed): each sample's augmentation follows from its own seed.

    So it does not matter which worker loads it, how many there are, or what was loaded before.
    """

    def __init__(self, dataset: Dataset):
        """Wrap a map-style data set."""
        self.dataset = dataset

    def __getitem__(self, item: tuple[Any, int]) -> tuple:
        """Return one sample."""
        index, seed = item
        seed_generators(seed)
        return self.dataset[index]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)


class SeededIterableDataset(IterableDataset):
    """An iterable data set whose n-th sample of a worker is augmented by a seed of its own."""

    def __init__(self, dataset: IterableDataset, *key: int):
        """Wrap the data set; `key` and `epoch` are part of each seed."""
        self.dataset = dataset
        self.key = key
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple]:
        """Return the samples of this worker."""
        info = get_worker_info()
        samples = iter(self.dataset)
        number = 0
        while True:
            seed_generators(mix_seed(*self.key, self.epoch, info.id if info else 0, number, SAMPLE))
            try:
                sample = next(samples)
            except StopIteration:
                return
            yield sample
            number += 1

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return len(self.dataset)


class SeededBatchSampler:
    """A batch sampler that gives each sample a seed and can leave out the first batches of an epoch.

    Args:
        batch_sampler: timm's or torch's.
        *key: Integers, part of each seed.
    """

    def __init__(self, batch_sampler, *key: int):
        """Wrap the batch sampler."""
        self.batch_sampler = batch_sampler
        self.key = key
        self.epoch = self.first = 0
        self.recent = collections.deque(maxlen=_RECENT_BATCHES)

    def __iter__(self) -> Iterator[list[tuple[Any, int]]]:
        """Return batches of (index, seed)."""
        sampler = self.batch_sampler.sampler
        if isinstance(sampler, RandomSampler):
            sampler.generator = torch.Generator().manual_seed(mix_seed(*self.key, self.epoch, ORDER))
        self.recent.clear()
        for number, batch in enumerate(self.batch_sampler):
            if number < self.first:
                continue
            self.recent.append((number, batch))
            yield list(zip(batch, mix_seeds(len(batch), *self.key, self.epoch, number, SAMPLE), strict=True))

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.batch_sampler)


class SeededErasing:
    """timm's random erasing of whole batches, with a seed for each batch.

    It runs in the main process, one batch ahead of the training step, whose random numbers it must not use.
    """

    def __init__(self, erasing: Callable, *key: int):
        """Wrap the function."""
        self.erasing = erasing
        self.key = key
        self.epoch = self.first = 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Erase in one batch."""
        seed_generators(mix_seed(*self.key, self.epoch, self.first, ERASING))
        self.first += 1
        return self.erasing(batch)


class TrainLoader:
    """timm's training loader, seeded throughout, that begins an epoch at any batch.

    Args:
        loader: Loader of `timm.data.create_loader`, with or without its prefetcher.
        seed: Seed of the run.
        rank: Number of this process.
        bad_images: Where unreadable images are reported and replaced; None stops at the first.
    """

    def __init__(self, loader, seed: int, rank: int, bad_images: BadImages | None = None):
        """Rebuild the loader around seeded parts."""
        key = (seed, rank)
        plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
        if isinstance(plain.dataset, IterableDataset):
            self.dataset = SeededIterableDataset(plain.dataset, *key)
            rebuilt = self.batches = _SkippingLoader(_rebuild(plain, self.dataset), *key)
        else:
            self.dataset = SeededDataset(TolerantDataset(plain.dataset, bad_images, replace=True))
            self.batches = SeededBatchSampler(plain.batch_sampler, *key)
            rebuilt = _rebuild(plain, self.dataset, self.batches)
        self.loader, self.erasing = rebuilt, None
        if isinstance(loader, PrefetchLoader):
            self.loader, loader.loader = loader, rebuilt
            if loader.random_erasing is not None:
                self.erasing = loader.random_erasing = SeededErasing(loader.random_erasing, *key)
        self.mixup = plain.collate_fn if isinstance(plain.collate_fn, FastCollateMixup) else None
        if self.mixup is not None:
            # Workers that live through epochs have copies; a tensor in shared memory reaches them
            self.mixup.mixup_enabled = torch.tensor(True).share_memory_()

    def begin(self, epoch: int, first: int = 0) -> None:
        """Choose what the next iteration gives.

        Args:
            epoch: Number of the epoch, from 0.
            first: Number of its first batch.
        """
        for part in (self.dataset, self.batches, self.erasing):
            if part is not None:
                part.epoch, part.first = epoch, first
        data = self.dataset.dataset
        data = data.dataset if isinstance(data, TolerantDataset) else data
        sampler = getattr(self.batches, "batch_sampler", None)
        for part in (data, sampler, getattr(sampler, "sampler", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def stop_mixup(self) -> None:
        """Mix no further images, in workers that run already as well."""
        if self.mixup is not None:
            self.mixup.mixup_enabled.fill_(False)

    def images_of(self, number: int) -> list[int] | None:
        """Return the indices in the data set of one of the last batches, or None where the data set has none."""
        for recent, batch in getattr(self.batches, "recent", ()):
            if recent == number:
                return [item[0] if isinstance(item, tuple) else item for item in batch]
        return None

    def __iter__(self) -> Iterator:
        """Return the batches of the chosen epoch from the chosen one on."""
        return iter(self.loader if self.batches.first < len(self) else ())  # older timm prefetches one even of none

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.loader)


def name_bad_images(loader, bad_images: BadImages | None):
    """Return timm's validation loader with unreadable images named in an error, or marked by the target -1.

    Args:
        loader: Loader of `timm.data.create_loader` over a map-style data set; others are returned as they are.
        bad_images: Where they are reported; None raises.
    """
    plain = loader.loader if isinstance(loader, PrefetchLoader) else loader
    if isinstance(plain.dataset, IterableDataset):
        return loader
    plain = _rebuild(plain, TolerantDataset(plain.dataset, bad_images, replace=False), plain.batch_sampler)
    if not isinstance(loader, PrefetchLoader):
        return plain
    loader.loader = plain
    return loader


class _SkippingLoader:
    """A loader of an iterable data set: what comes before the first batch is read and thrown away."""

    def __init__(self, loader: DataLoader, *key: int):
        self.loader = loader
        self.key = key
        self.epoch = self.first = 0

    def __iter__(self) -> Iterator:
        # Gives the workers the seeds with which some data sets (WebDataset) shuffle
        self.loader.generator = torch.Generator().manual_seed(mix_seed(*self.key, self.epoch, ORDER))
        return islice(iter(self.loader), self.first, None)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _rebuild(loader: DataLoader, dataset: Dataset, batch_sampler=None) -> DataLoader:
    """Return a loader like another one, over other data in other batches."""
    parts = dict(batch_sampler=batch_sampler, persistent_workers=loader.persistent_workers)
    if batch_sampler is None:
        # Workers copy an iterable data set, with the number of its epoch, as they start
        parts = dict(batch_size=loader.batch_size, drop_last=loader.drop_last, persistent_workers=False)
    return DataLoader(
        dataset,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=_start_worker,
        **parts,
    )


def _start_worker(worker: int) -> None:
    """Leave the signals of a cluster or of Ctrl-C to the main process, which still needs this one to stop in order."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process at a SIGTERM of the main process, at no other one's."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
