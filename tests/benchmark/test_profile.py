"""Profiles of a block: whose time is told, and models that have none."""

import pytest
import torch

from hyena_vision.benchmark import profile
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.profile import OTHERS, ProfileRow, kernel_times, make_call
from hyena_vision.benchmark.report import read_csv


def run(folder, *argv):
    argv = [*argv, "--device", "cpu", "--dtype", "float32", "-b", "1", "--rounds", "2", "--output", str(folder)]
    main(["profile", *argv])
    return read_csv(str(folder / "profile.csv"), ProfileRow)


def test_blocks_of_all_kinds_of_models(tmp_path, capsys):
    models = ["hyena2d_vit_tiny", "vit_tiny_patch16_224", "hpx_former_s18"]
    rows = run(tmp_path, "--models", *models, "--img-sizes", "32", "--train")
    assert {(row.model, row.mode) for row in rows} == {(name, mode) for name in models for mode in ("infer", "train")}
    for name in models:
        some = [row for row in rows if (row.model, row.mode) == (name, "train")]
        assert sum(row.share for row in some) == pytest.approx(1) and all(row.us > 0 for row in some)
        largest = [row.us for row in some if row.kernel != OTHERS]
        assert largest == sorted(largest, reverse=True) and len(largest) == 12
    assert "hpx_former_s18, 32 px, training" in capsys.readouterr().out
    assert "aten::addmm" in (tmp_path / "profile.md").read_text() and (tmp_path / "profile.png").exists()


def test_calls_are_those_of_one_call_of_the_block():
    x = torch.randn(8, 8)
    times = kernel_times(lambda: x @ x @ x, "cpu", 5)
    assert {name: calls for name, calls, _ in times}["aten::mm"] == 2


def test_a_profiled_block_is_a_block_of_the_model(monkeypatch):
    """One forward pass up to the block and no further, and nothing of the model but the block."""
    call = make_call("hyena2d_vit_tiny", 32, 2, "infer", "float32", "cpu", True)
    assert call().shape == (2, 2, 2, 192) and not call().requires_grad
    grads = make_call("hyena2d_vit_tiny", 32, 2, "train", "float32", "cpu", False)()
    assert grads[0].shape == (2, 2, 2, 192) and all(grad is not None for grad in grads)


def test_models_without_blocks_and_failures_are_rows(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "--models", "hyena_vit_tiy", "--img-sizes", "32")
    with pytest.raises(SystemExit):
        run(tmp_path, "--models", "resnet18", "--img-sizes", "32")
    assert "resnet18 has neither blocks" in capsys.readouterr().err

    def fail(*args):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(profile, "kernel_times", fail)
    (row,) = run(tmp_path, "--models", "hyena_vit_tiny", "--img-sizes", "32")
    assert row.status == "failed: RuntimeError: CUDA error: an illegal memory access" and row.us is None
    assert "illegal memory access" in (tmp_path / "profile.md").read_text()
