import functools
import io
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hyena_vision.benchmark import memory
from hyena_vision.benchmark.memory import peak_memory
from hyena_vision.benchmark.step import create_model, make_step
from hyena_vision.benchmark.timing import release_memory


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
def in_this_process(monkeypatch, capsys):
    """Measure without the 8 seconds that a fresh process takes to import torch and timm."""

    def run(command, input, **kwargs):
        release_memory()  # what other tests left must not be given back in the middle
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(input)))
        memory.main()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out.encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)


@needs_proc
def test_memory_that_is_given_back_counts(in_this_process):
    large, small = (peak_memory(allocate(number)) for number in (50_000_000, 25_000_000))
    assert 190 < large < 250 and 95 < small < 150


def test_memory_that_runs_out_in_the_process_is_told(in_this_process):
    with pytest.raises(torch.OutOfMemoryError):
        peak_memory(allocate(10**16))


def test_why_it_failed_in_the_process_is_told_once(in_this_process):
    with pytest.raises(RuntimeError, match="^Trying to create tensor with negative dimension"):
        peak_memory(allocate(-1))


def test_a_process_killed_for_its_memory_is_out_of_memory(monkeypatch):
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(torch.OutOfMemoryError, match="killed"):
        peak_memory(allocate(1))


def test_another_failure_shows_what_the_process_said(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, b"", b"ValueError: img_size")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="img_size"):
        peak_memory(allocate(1))


def test_a_system_that_does_not_tell_gives_none_and_not_zero(in_this_process, monkeypatch):
    def no_proc(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(memory, "open", no_proc, raising=False)
    assert peak_memory(allocate(1)) is None
