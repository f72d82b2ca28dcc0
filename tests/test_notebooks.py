import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from hyena_vision.training.predictions import read_predictions

FOLDER = Path(__file__).parents[1] / "notebooks"
SMALL_MODELS = ("hyena2d_iso_tiny", "vit_tiny_patch16_224")


def read(name):
    """A notebook as it is in the repository."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def execute(names, tmp_path, monkeypatch):
    """Run notebooks in their small mode, without a display; a cell that fails raises.

    In one kernel, whose names are deleted in between: starting another and importing torch takes five seconds.
    """
    executed = [nbformat.from_dict(read(name)) for name in names]
    whole = nbformat.v4.new_notebook(metadata=executed[0].metadata)
    for notebook in executed:
        whole.cells += [*notebook.cells, nbformat.v4.new_code_cell("%reset -f")]
    for folder in ("ipython", "working_folder"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HYENA_VISION_NOTEBOOK", "small")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for variable in ("DISPLAY", "MPLBACKEND", "DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    NotebookClient(whole, timeout=120, resources={"metadata": {"path": str(tmp_path / "working_folder")}}).execute()
    for cell in code_cells(whole):
        assert cell.execution_count is not None, cell.id
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.id
    return executed


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
def test_both_run(tmp_path, monkeypatch):
    throughput, finetune = execute(("throughput", "finetune"), tmp_path, monkeypatch)
    check_figures_and_tables(throughput)
    check_from_a_folder_of_images_to_predictions(finetune, tmp_path / "working_folder" / "output")


def check_figures_and_tables(executed):
    assert len(outputs(executed, "image/png")) == 3  # inference, training steps, operators
    infer, train, ops = outputs(executed, "text/markdown")
    for name in SMALL_MODELS:
        for size in (32, 64):
            assert re.search(rf"^\| {name} +\| +{size} \|.*\| ok +\|$", infer, re.MULTILINE), infer
        assert re.search(rf"^\| {name} +\| +32 \|.*\| ok +\|$", train, re.MULTILINE), train
    for op in ("sdpa", "hyena2d", "hyena1d"):
        for grid in (2, 4):
            assert re.search(rf"^\| {op} +\| +{grid} \| +{grid**2} \| +[\d.]+ \|", ops, re.MULTILINE), ops


def check_from_a_folder_of_images_to_predictions(executed, output):
    assert len(outputs(executed, "image/png")) == 6  # images, curves, confusions, mistakes, filters, receptive field
    text = {cell.id: "".join(o.text for o in cell.outputs if "text" in o) for cell in code_cells(executed)}
    (run,) = output.iterdir()
    rows = read_predictions(str(run / "predictions.csv"))
    right = sum(row.label == row.prediction for row in rows)
    assert f"{100 * right / len(rows):.1f} % of {len(rows)} images" in text["result"] and right > 0.3 * len(rows)
    (table,) = outputs(executed, "text/markdown")
    for digit in range(10):
        own = [row.prediction == row.label for row in rows if row.label == str(digit)]
        assert f"| {digit} | {len(own)} | {100 * sum(own) / len(own):.1f} |" in table
    assert len(text["predict"].splitlines()) == 5 and "same logits: True" in text["export"]


def test_the_notebook_reads_a_folder_as_training_does(tmp_path):
    for name in ("cat/deep/1.png", "dog/1.png", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (source,) = (cell.source for cell in code_cells(read("finetune")) if "FolderReader(" in cell.source)
    names = {"DATA_DIR": str(tmp_path), "Path": Path}
    exec(source.replace("%matplotlib inline", ""), names)
    assert {name: len(files) for name, files in names["images"].items()} == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("name", ["throughput", "finetune"])
def test_stored_without_outputs(name):
    stored = read(name)
    nbformat.validate(stored)
    assert (stored.nbformat, stored.nbformat_minor) == (4, 5)
    assert stored.metadata.kernelspec.name == "python3"
    assert all(cell.id for cell in stored.cells)
    for cell in code_cells(stored):
        assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 20_000


def test_no_clock_of_its_own():
    """What is timed is timed by the package."""
    source = "\n".join(cell.source for cell in code_cells(read("throughput")))
    tree = ast.parse(re.sub(r"^%matplotlib inline$", "", source, flags=re.MULTILINE))  # and no other magic
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {"time", "timeit", "torch.utils.benchmark", "hyena_vision.benchmark.timing"} & imported
    assert {"hyena_vision.benchmark.models", "hyena_vision.benchmark.ops"} <= imported
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {"Event", "Timer"} & attributes  # of torch
