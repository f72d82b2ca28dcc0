import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "notebooks" / "throughput.ipynb"
SMALL_MODELS = ("hyena2d_iso_tiny", "vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def stored():
    """The notebook as it is in the repository."""
    return nbformat.read(PATH, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    """Contents of one MIME type, in order."""
    return [
        output.data[kind]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type in ("display_data", "execute_result") and kind in output.data
    ]


@pytest.mark.slow
def test_figures_and_tables_of_a_run(stored, tmp_path, monkeypatch):
    """In the small mode, without a display; a cell that fails raises."""
    executed = nbformat.from_dict(stored)
    for name in ("ipython", "working_folder"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HYENA_VISION_NOTEBOOK", "small")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    NotebookClient(executed, timeout=120, resources={"metadata": {"path": str(tmp_path / "working_folder")}}).execute()
    for cell in code_cells(executed):
        assert cell.execution_count is not None, cell.id
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.id
    assert len(outputs(executed, "image/png")) == 3  # inference, training steps, operators
    infer, train, ops = outputs(executed, "text/markdown")
    for name in SMALL_MODELS:
        for size in (32, 64):
            assert re.search(rf"^\| {name} \| {size} \|.*\| ok \|$", infer, re.MULTILINE), infer
        assert re.search(rf"^\| {name} \| 32 \|.*\| ok \|$", train, re.MULTILINE), train
    for op in ("sdpa", "hyena2d", "hyena1d"):
        for grid in (2, 4):
            assert re.search(rf"^\| {op} \| {grid} \| {grid**2} \| [\d.]+ \|", ops, re.MULTILINE), ops


def test_stored_without_outputs(stored):
    nbformat.validate(stored)
    assert (stored.nbformat, stored.nbformat_minor) == (4, 5)
    assert stored.metadata.kernelspec.name == "python3"
    assert all(cell.id for cell in stored.cells)
    for cell in code_cells(stored):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert PATH.stat().st_size < 20_000


def test_no_clock_of_its_own(stored):
    """What is timed is timed by the package."""
    source = "\n".join(cell.source for cell in code_cells(stored))
    tree = ast.parse(re.sub(r"^%matplotlib inline$", "", source, flags=re.MULTILINE))  # and no other magic
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {"time", "timeit", "torch.utils.benchmark", "hyena_vision.benchmark.timing"} & imported
    assert {"hyena_vision.benchmark.models", "hyena_vision.benchmark.ops"} <= imported
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {"Event", "Timer"} & attributes  # of torch
