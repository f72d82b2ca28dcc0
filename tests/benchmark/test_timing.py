import pytest
import torch

from hyena_vision.benchmark import timing
from hyena_vision.benchmark.timing import (
    OK,
    OUT_OF_MEMORY,
    SINGLE_READING,
    Timing,
    quartiles,
    speed_ratios,
    time_interleaved,
)
from hyena_vision.training.errors import UserError


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def contender(calls):
    """Return a function that makes a contender, which notes its calls and raises at one of them."""

    def contender(name: str, error: Exception | None = None, at: int = 0):
        def call() -> None:
            calls.append(name)
            if error is not None and calls.count(name) == at:
                raise error

        return call

    return contender


def test_contenders_take_turns_after_two_warm_up_calls_of_each(calls, contender):
    timings = time_interleaved({name: contender(name) for name in "abc"}, 3)
    assert "".join(calls) == "aabbcc" + "abc" * 3
    assert all(len(timing.seconds) == 3 and min(timing.seconds) > 0 for timing in timings.values())
    assert {timing.status for timing in timings.values()} == {OK}


def test_short_calls_are_repeated_to_fill_a_reading(calls, contender, monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.001)
    time_interleaved({"a": contender("a")}, 2)
    repeats, rest = divmod(len(calls) - 2, 2)
    assert repeats > 1 and rest == 0


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_contender_without_memory_is_dropped_and_the_others_go_on(calls, contender, at):
    contenders = {
        "a": contender("a"),
        "big": contender("big", torch.OutOfMemoryError("CUDA out of memory"), at),
        "b": contender("b"),
    }
    timings = time_interleaved(contenders, 3)
    assert timings["big"] == Timing((), OUT_OF_MEMORY)
    assert calls.count("big") == at and calls.count("a") == calls.count("b") == 5
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]


def test_the_cpu_allocators_error_is_out_of_memory():
    timings = time_interleaved({"big": lambda: torch.empty(10**16), "small": lambda: torch.empty(1)}, 1)
    assert timings["big"].status == OUT_OF_MEMORY and timings["small"].status == OK


def test_a_contender_that_fails_is_said_and_the_others_go_on(contender):
    contenders = {"a": contender("a", RuntimeError("shapes\ndiffer"), at=3), "b": contender("b")}
    timings = time_interleaved(contenders, 1)
    assert timings["a"] == Timing((), "failed: RuntimeError: shapes differ") and timings["b"].status == OK
    with pytest.raises(UserError):
        time_interleaved({"a": contender("a", UserError("no such model"), at=5)}, 1)


def test_a_first_call_over_the_limit_is_the_only_one(calls, contender):
    timings = time_interleaved({"a": contender("a"), "b": contender("b")}, 3, time_limit=0)
    assert "".join(calls) == "ab"
    assert all(timing.status == SINGLE_READING and len(timing.seconds) == 1 for timing in timings.values())


def test_quartiles():
    assert quartiles((4.0, 1.0, 2.0, 3.0, 5.0)) == (2, 3, 4)
    assert quartiles([2.0]) == (2, 2, 2)
    assert quartiles(()) == (None, None, None)


def test_ratios_are_those_of_each_round():
    base = Timing((2.0, 20.0, 6.0))
    assert speed_ratios(Timing((1.0, 4.0, 2.0)), base) == [2, 5, 3]
    assert speed_ratios(Timing((2.0,), SINGLE_READING), base) == [1, 10, 3]
    assert speed_ratios(base, Timing((2.0,), SINGLE_READING)) == [1, 0.1, 1 / 3]
    assert speed_ratios(base, Timing((), OUT_OF_MEMORY)) == []
    assert speed_ratios(Timing((), OUT_OF_MEMORY), base) == []


def test_a_broken_gpu_ends_it(contender, monkeypatch):
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(UserError, match=r"failed: ValueError: odd; that broke the GPU's context"):
        time_interleaved({"a": contender("a", ValueError("odd"), at=1), "b": contender("b")}, 1)
