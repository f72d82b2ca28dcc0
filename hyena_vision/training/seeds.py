"""Seeds: every random number of a run follows from its seed, the process, the epoch and the position."""

import random

import numpy
import torch

# What the random numbers are for: the last word of each seed
SAMPLE, ERASING, STEP, ORDER = range(4)


def mix_seed(*words: int) -> int:
    """Return a 64-bit seed from integers, independent for any two different lists of them."""
    return mix_seeds(1, *words)[0]


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (CUDA included) of this process."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    # torch.manual_seed takes 0.4 ms for each sample: it formats the stack, in case CUDA is started later
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def mix_seeds(count: int, *words: int) -> list[int]:
    """Return several such seeds from the same integers."""
    # NumPy takes a list for the same as one with zeros behind it, hence the length
    sequence = numpy.random.SeedSequence([len(words), *(word % 2**64 for word in words)])
    return sequence.generate_state(count, numpy.uint64).tolist()
