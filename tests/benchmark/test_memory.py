import functools
import multiprocessing
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hyena_vision.benchmark import memory
from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.step import create_model, make_step
from hyena_vision.benchmark.timing import OUT_OF_MEMORY, attempt, release_memory


def allocate(number):
    """What makes a contender, which makes so many numbers."""
    return functools.partial(functools.partial, torch.ones, number)


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@needs_proc
def test_peak_of_a_fresh_process_is_weights_and_little_more_for_one_small_image():
    weights = sum(4 * parameter.numel() for parameter in create_model("hyena2d_vit_small", 32).parameters()) / 1e6
    peak = peak_memory(functools.partial(make_step, "hyena2d_vit_small", 32, 1, "infer", "float32", "no", "cpu"))
    assert weights < peak < 1.2 * weights + 20


@pytest.fixture
def pretend_process(monkeypatch):
    """Return a function that puts this process, or one that ends so without a word, in the place of a fresh one."""

    def pretend(exitcode=0):
        def process(target, args):
            def start():
                release_memory()  # what other tests left must not be given back in the middle
                if exitcode == 0:
                    target(*args)

            return SimpleNamespace(start=start, join=lambda: None, exitcode=exitcode)

        context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)
        monkeypatch.setattr(memory, "get_context", {"spawn": context}.get)

    return pretend


@needs_proc
def test_memory_that_is_given_back_counts(pretend_process):
    pretend_process()
    large, small = (peak_memory(allocate(number)) for number in (50_000_000, 25_000_000))
    assert 190 < large < 250 and 95 < small < 150


def test_memory_that_runs_out_in_the_process_is_told(pretend_process):
    pretend_process()
    assert attempt(lambda: peak_memory(allocate(10**16))) == (None, OUT_OF_MEMORY)


def test_why_it_failed_in_the_process_is_told(pretend_process):
    pretend_process()
    with pytest.raises(RuntimeError, match="^Trying to create tensor with negative dimension"):
        peak_memory(allocate(-1))


def test_a_process_killed_for_its_memory_is_out_of_memory(pretend_process):
    pretend_process(-signal.SIGKILL)
    with pytest.raises(torch.OutOfMemoryError, match="killed"):
        peak_memory(allocate(1))


def test_a_process_that_ends_otherwise_is_a_failure(pretend_process):
    pretend_process(-signal.SIGSEGV)
    with pytest.raises(RuntimeError, match="ended with -11"):
        peak_memory(allocate(1))


def test_a_system_that_does_not_tell_gives_none_and_not_zero(pretend_process, monkeypatch):
    def no_proc(*args, **kwargs):
        raise FileNotFoundError

    pretend_process()
    monkeypatch.setattr(Path, "read_text", no_proc)
    assert peak_memory(allocate(1)) is None
