"""The long convolutions by name, for several test files."""

import threading

import pytest
import torch

from hyena_vision.ops import long_conv1d, long_conv2d
from hyena_vision.ops.cpp import library as cpp_library
from hyena_vision.testing import assert_within_tolerance

# Without a compiler the next backend is tested; one that cannot compile the sources is a fault of theirs
_missing = cpp_library.why_not()
needs_cpp = pytest.mark.skipif(_missing is not None and "failed" not in _missing, reason=str(_missing))

OPERATORS = {
    "causal": (long_conv1d, dict(causal=True)),
    "centred": (long_conv1d, dict(causal=False)),
    "linear": (long_conv2d, dict(padding="linear")),
    "circular": (long_conv2d, dict(padding="circular")),
}


def convolve_in_threads(backend, problems, threads_of_each=None):
    """One thread per problem, all at once, in and out of inference mode."""
    wrong, start = [], threading.Barrier(len(problems))

    def work(problem):
        try:
            if threads_of_each is not None:
                torch.set_num_threads(threads_of_each)
            tensors = problem.tensors(torch.float32)
            truth = long_conv2d(*[t.double() for t in tensors], backend="reference")
            start.wait()
            for turn in range(60):
                with torch.inference_mode(turn % 2 == 0):
                    y = long_conv2d(*tensors, backend=backend)
                assert_within_tolerance(y, truth, torch.float32)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(problem,)) for problem in problems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
