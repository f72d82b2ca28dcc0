import functools
import gc
import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_configure(config):
    """Set up a process that runs tests. That of xdist which hands them out runs none: it need not import torch."""
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        _set_up()


def _set_up():
    gc.disable()
    import torch

    if not torch.cuda.is_available():
        # Before anything imports Triton: kernels then run on the CPU
        os.environ["TRITON_INTERPRET"] = "1"
        if find_spec("triton") is not None:
            _patch_once_a_launch()
    # The first backward pass of a process decides whether its forks may have one; after a compilation it says no
    torch.ones(1, requires_grad=True).sum().backward()
    # The process waits so long, 5 seconds, for workers of a loader that a test has broken off
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    from hyena_vision.training import report

    report.plot_curves = functools.partial(draw_once, report.plot_curves, set())


def _patch_once_a_launch():
    """Triton's interpreter patches its language for a launch, and again, to no avail, for each call in a kernel.

    The calls take as long as all else that it does.
    """
    from triton.runtime import interpreter

    patch_lang, execute, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch(function):
        if function.__module__ in patched:
            return None
        patched.add(function.__module__)
        return patch_lang(function)

    def call(self, *args, **kwargs):
        patched.clear()
        return execute(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch, call


def pytest_collection_finish():
    """What was imported stays: the collector need not look at millions of objects again, hundreds of times."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)  # and in what tests make, seldom
    gc.enable()


def draw_once(plot, drawn, runs, path):
    """As `plot_curves`, but of a training run whose curves are of a kind that was drawn the picture is empty.

    To draw them takes as long as to train a tiny model. A kind: name, columns, one epoch or several, finite or not.
    """
    if not path.endswith("curves.png"):
        return plot(runs, path)
    ((name, rows),) = runs.items()
    kind = name, len(rows) > 1, frozenset((column, math.isfinite(row[column])) for row in rows for column in row)
    if kind in drawn:
        Path(path).touch()
        return True
    drawn.add(kind)
    return plot(runs, path)


def pytest_collection_modifyitems(config, items):
    """Each test process begins with its share of the slow tests: at the end none is left alone with a long one.

    xdist's worksteal gives each process a part of the list, and one that is done the end of another's part.
    """
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    ends = [len(quick) * part // count for part in range(count + 1)]
    items[:] = [item for part in range(count) for item in slow[part::count] + quick[ends[part] : ends[part + 1]]]


@pytest.fixture(autouse=True)
def _reproducible():
    """Same random numbers for every test, and one thread: tests that need more set it themselves."""
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nan_filled_empties():
    """Memory that an operator allocates and does not write holds NaN."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def no_numbers(monkeypatch):
    """Weights are not drawn: for models on the meta device, where drawing is slow Python, or that get others."""
    import torch

    for name in ("clamp_", "erfinv_", "normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor)


@pytest.fixture(autouse=True)
def _kernels(request, record_property, monkeypatch):
    """Note for the report of a test of the fused kernels which of them it launched."""
    if request.node.get_closest_marker("gpu") is None or find_spec("triton") is None:
        yield
        return
    import torch
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import KernelInterface

    launched = set()
    for kind in (KernelInterface, InterpretedFunction):
        original = kind.__getitem__

        def getitem(self, grid, original=original):
            launched.add(self.fn.__name__)
            return original(self, grid)

        monkeypatch.setattr(kind, "__getitem__", getitem)
    yield
    record_property("kernels", " ".join(sorted(launched)))
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(3)  # after an illegal access every test would fail here; xdist starts another process
        raise


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A data set of 24 images to train on and 15 to validate on."""
    from trainer import draw_images

    return draw_images(tmp_path_factory.mktemp("images"), {"train": 8, "val": 5})


@pytest.fixture
def run(images, tmp_path):
    """Return a function that runs the training program on a tiny model."""
    from trainer import QUICK, train_imagenet

    def run(experiment: str, *argv: str) -> dict:
        start = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--experiment", experiment]
        return train_imagenet.main([*start, *argv])

    return run
