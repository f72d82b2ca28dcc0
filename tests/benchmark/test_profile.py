"""Profiles of a block: whose time is told, and models that have none."""

from types import SimpleNamespace

import pytest
import torch

from hyena_vision.benchmark import profile
from hyena_vision.benchmark.__main__ import main
from hyena_vision.benchmark.profile import OTHERS, ProfileRow, kernel_times, make_call, short_name
from hyena_vision.benchmark.tables import read_csv


def run(folder, *argv):
    main(["profile", *argv, "--device", "cpu", "--dtype", "float32", "--rounds", "2", "--output", str(folder)])
    return read_csv(str(folder / "profile.csv"), ProfileRow)


def test_blocks_of_all_kinds_of_models(tmp_path, capsys):
    models = ["hyena2d_vit_tiny", "vit_tiny_patch16_224", "hpx_former_s18"]
    rows = run(tmp_path, "--models", *models, "--img-sizes", "32", "-b", "1", "--train")
    assert {(row.model, row.mode) for row in rows} == {(name, mode) for name in models for mode in ("infer", "train")}
    for name in models:
        some = [row for row in rows if (row.model, row.mode) == (name, "train")]
        assert sum(row.share for row in some) == pytest.approx(1) and all(row.us > 0 for row in some)
        assert all(row.grid == 2 and row.block_us == pytest.approx(sum(row.us for row in some)) for row in some)
        largest = [row.us for row in some if row.kernel != OTHERS]
        assert largest == sorted(largest, reverse=True) and len(largest) == 12
    assert "hpx_former_s18, 32 px, training" in capsys.readouterr().out
    assert "aten::addmm" in (tmp_path / "profile.md").read_text() and (tmp_path / "profile.png").exists()


def test_calls_are_those_of_one_call_of_the_block():
    x = torch.randn(8, 8)
    times = kernel_times(lambda: x @ x @ x, "cpu", 5)
    assert {name: calls for name, calls, _ in times}["aten::mm"] == 2


def test_on_a_gpu_only_its_kernels_count(monkeypatch):
    """With events as a GPU gives them: a kernel's time is its own and, once more, that of the operator."""

    class Profiler:
        def __init__(self, activities):
            assert len(activities) == 2

        __enter__, __exit__ = lambda self: self, lambda self, *error: None

        def key_averages(self):
            kinds = torch.autograd.DeviceType
            events = [("aten::mm", kinds.CPU, 6), ("void gemm<1>", kinds.CUDA, 6), ("Memset", kinds.CUDA, 8)]
            times = dict(count=4, self_cpu_time_total=99)
            return [SimpleNamespace(key=k, device_type=d, self_device_time_total=us, **times) for k, d, us in events]

    monkeypatch.setattr(profile, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    calls = []
    assert kernel_times(lambda: calls.append("call"), "cuda", 2) == [("Memset", 2, 4), ("gemm<1>", 2, 3)]
    assert calls == ["call"] * 3 + ["wait"] + ["call"] * 2 + ["wait"]


def test_a_profiled_block_is_a_block_of_the_model(monkeypatch):
    """One forward pass up to the block and no further, and nothing of the model but the block."""
    call = make_call("hyena2d_vit_tiny", 32, 2, "infer", "float32", "cpu", True)
    assert call().shape == (2, 2, 2, 192) and not call().requires_grad
    grads = make_call("hyena2d_vit_tiny", 32, 2, "train", "float32", "cpu", False)()
    assert grads[0].shape == (2, 2, 2, 192) and all(grad is not None for grad in grads)


def test_batches_are_chosen_by_the_tokens_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "_TOKENS", 72)
    rows = run(tmp_path, "--models", "hyena2d_iso_tiny", "--img-sizes", "12")
    assert {(row.grid, row.batch_size) for row in rows} == {(6, 2)}  # patches of 2 pixels


def test_names_of_kernels_say_what_they_do():
    name = "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>(int, float)"
    assert short_name(name) == "vectorized_layer_norm_kernel<BFloat16, float>(int, float)"
    assert short_name("at::native::great_kernel" + 100 * "x") == ("great_kernel" + 100 * "x")[:80]
    assert short_name("aten::addmm") == "aten::addmm" and short_name("_hyena_forward") == "_hyena_forward"


def test_kernels_of_equal_short_names_are_one(monkeypatch):
    monkeypatch.setattr(profile, "short_name", lambda kernel: "a kernel")
    ((name, calls, us),) = kernel_times(lambda: torch.ones(3) + 1, "cpu", 2)
    assert name == "a kernel" and calls >= 2 and us > 0


def test_what_fails_is_a_row_and_the_next_goes_on(tmp_path, monkeypatch):
    models = ["hyena_vit_tiy", "resnet18", "vit_tiny_patch16_224"]
    rows = {row.model: row for row in run(tmp_path, "--models", *models, "--img-sizes", "32", "-b", "1")}
    assert rows["hyena_vit_tiy"].status == "failed: timm knows no model 'hyena_vit_tiy'"
    assert "resnet18 has neither blocks" in rows["resnet18"].status
    assert rows["vit_tiny_patch16_224"].status == "ok" and rows["vit_tiny_patch16_224"].us > 0

    def fail(*args):
        raise RuntimeError("CUDA error: an illegal memory access")

    for times, text in ((fail, "CUDA error: an illegal memory access"), (lambda *args: [], "profiler saw no kernels")):
        monkeypatch.setattr(profile, "kernel_times", times)
        (row,) = run(tmp_path, "--models", "hyena_vit_tiny", "--img-sizes", "32", "-b", "1")
        assert row.status.startswith("failed: RuntimeError: ") and text in row.status and row.us is None
        assert text in (tmp_path / "profile.md").read_text() and (tmp_path / "profile.png").exists()
