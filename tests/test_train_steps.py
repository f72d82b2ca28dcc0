"""What each step of a run does that no other does."""

import torch

from hyena_vision.training import loop
from hyena_vision.training.seeded_loader import SeededErasing


def test_every_step_draws_its_own_random_numbers(run, monkeypatch):
    real, seeds = loop.seed_generators, []
    monkeypatch.setattr(loop, "seed_generators", lambda seed: seeds.append(seed) or real(seed))
    run("seeds")
    assert len(seeds) == len(set(seeds)) == 6  # 24 images in batches of 8, twice


def test_every_batch_of_every_epoch_is_erased_by_its_own_random_numbers():
    erasing, drawn = SeededErasing(lambda batch: torch.rand(()).item(), 0, 0), set()
    for epoch in range(2):
        erasing.epoch, erasing.first = epoch, 0
        drawn.update(erasing(torch.zeros(1)) for _ in range(3))
    assert len(drawn) == 6
