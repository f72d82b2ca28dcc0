"""Predictions: what the validation of the run computes, from every form of the model, and files that cannot be read."""

import csv
import json
import os
import pickle
import sys
from pathlib import Path

import numpy
import onnx
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from trainer import QUICK, draw_images, load, train_imagenet

from hyena_vision import predict as program
from hyena_vision import pretrained, visualize
from hyena_vision.data import DataError, find_files
from hyena_vision.predict import predict
from hyena_vision.training import loop
from hyena_vision.training.classes import exported_classes
from hyena_vision.training.errors import UserError

NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with a crop of its own, whose classes have names."""
    folder = tmp_path_factory.mktemp("predict")
    draw_images(folder / "images", {"train": 8})
    photos = folder / "images" / "validation"
    for index, name in enumerate(NAMES):
        (photos / name).mkdir(parents=True)
        pixels = numpy.random.default_rng(index).integers(0, 255, (20, 30, 3)).astype("uint8")
        Image.fromarray(pixels).save(photos / name / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    ramp = numpy.arange(600, dtype="uint16").reshape(20, 30) * 100
    Image.fromarray(pixels).save(photos / "blue" / "turned.JPG", exif=exif)
    Image.fromarray(ramp).save(photos / "red" / "grey16.png")
    argv = ["--data-dir", str(folder / "images"), "--output", str(folder), "--experiment", "run", "--epochs", "1"]
    argv += ["--crop-pct", "0.8", "--pretrained-cfg-overlay", "crop_mode=squash", "--interpolation", "bilinear"]
    train_imagenet.main([*QUICK, *argv])
    return folder / "run"


@pytest.fixture
def photos(run) -> Path:
    return run.parent / "images" / "validation"


def table(rows) -> tuple[list[str], torch.Tensor]:
    """Files, and probabilities in the order of the classes."""
    assert all(row.error is None and row.names == [NAMES[index] for index in row.indices] for row in rows)
    probabilities = [[row.probabilities[row.indices.index(index)] for index in range(3)] for row in rows]
    return [row.file for row in rows], torch.tensor(probabilities)


@pytest.mark.parametrize("size", [None, 24])
def test_rows_are_what_validation_computes_from_every_form_of_the_model(run, photos, tmp_path, monkeypatch, size):
    """With 24 pixels, validation has the exported model alone."""
    logits, real = [], loop._logits
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    monkeypatch.setattr(loop, "_logits", lambda *args: logits.append(real(*args)) or logits[-1])
    argv = ["--eval", str(run / "model_best.pth.tar")]
    if size:
        argv = [
            "--eval",
            str(tmp_path / "model.safetensors"),
            "--data-dir",
            str(photos.parent),
            "--img-size",
            str(size),
        ]
    train_imagenet.main([*argv, "-j", "0", "--device", "cpu"])
    expected = torch.cat(logits).float().softmax(1)
    assert expected.shape == (5, 3) and expected.std(0).min() > 1e-4  # images that differ
    sources = [run, f"local-dir:{run}", run / "model_best.pth.tar", run / "model.safetensors"]
    for source in sources[: 4 if size is None else 3]:
        files, probabilities = table(list(predict(source, photos, img_size=size, batch_size=2, device="cpu")))
        assert [Path(file).name for file in files] == ["turned.JPG", "wide.png", "wide.png", "grey16.png", "wide.png"]
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)


def test_the_weights_of_a_run_that_goes_on_are_its_best_checkpoint(run, tmp_path):
    for name in ("model.safetensors", "model_best.pth.tar", "config.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert pretrained.load(tmp_path).name.endswith("model_best.pth.tar")  # as for --eval
    (tmp_path / "model_best.pth.tar").unlink()
    assert pretrained.load(tmp_path).name.endswith("model.safetensors")


def test_onnx_gives_the_probabilities_of_torch(run, photos, tmp_path, monkeypatch, capsys):
    model = pretrained.load(run).model
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.onnx.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes, dynamo=True, verbose=False)
    free, fixed = tmp_path / "free.onnx", tmp_path / "fixed.onnx"
    exported.save(str(free))
    proto = onnx.load(free)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, fixed)
    files, expected = table(list(predict(run, photos, device="cpu")))
    for path in (free, fixed):  # five images: the last batch of two is filled up
        found, probabilities = table(list(predict(path, photos, config=run / "config.json", device="cpu")))
        assert found == files
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)

    expect_error(capsys, [str(free), str(photos)], 1, str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert len(program.main([str(free), str(photos), "--device", "cpu"])) == 5
    capsys.readouterr()
    expect_error(capsys, [str(free), str(photos), "--img-size", "32"], 1, "free.onnx", "[16, 16]", "32")
    expect_error(capsys, [str(free), str(photos), "--amp"], 2, "--amp", "free.onnx")
    free.write_bytes(b"no model")
    expect_error(capsys, [str(free), str(photos)], 1, "cannot read", "free.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expect_error(capsys, [str(free), str(photos)], 1, "pip install onnxruntime")


def test_a_model_of_timm_has_the_names_of_imagenet(photos, monkeypatch):
    create, asked = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append(pretrained) or create(name))
    (row,) = predict("test_vit", photos / "red" / "grey16.png", top_k=2, img_size=32, device="cpu")
    assert asked == [True]
    assert row.names == [ImageNetInfo().index_to_description(index) for index in row.indices] and len(row.names) == 2


def test_without_names_classes_are_numbers(run, photos, tmp_path, capsys):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "label_names"}))
    rows = program.main([str(tmp_path), str(photos / "red"), "--device", "cpu"])
    assert all(row.names == [str(index) for index in row.indices] for row in rows)
    assert "does not say what its classes are called" in capsys.readouterr().err


def test_names_with_gaps_and_descriptions():
    cfg = {"label_names": {"0": "n1", "2": "n3"}, "label_descriptions": {"n1": "tench", "n3": "crane"}}
    assert pretrained._names_in(cfg) == ["tench", "1", "crane"]
    with pytest.raises(UserError, match="label_names by the index"):
        pretrained._names_in({"label_names": {"tench": 0}})


def test_training_reads_names_by_index_as_predictions_do(tmp_path):
    """timm's config.json may have them as a dict, and names may be numbers."""
    config = {"architecture": "vit", "label_names": {"0": "2", "1": "10"}, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert exported_classes(str(tmp_path)) == {"2": 0, "10": 1}
    (tmp_path / "config.json").write_text('{"model_type": "of another library"}')
    assert exported_classes(str(tmp_path)) is None


def test_files_csv_and_json(run, tmp_path, capsys):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("10.png", "9.png", "deep/a.webp", ".hidden/c.png", "._9.png"):
        Image.new("RGB", (20, 20), "red").save(folder / name)
    latin = os.fsdecode(b"deep/na\xefve.jpg")  # as an archive of another system unpacks
    for name in ("deep/broken.jpg", latin):
        (folder / name).write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left out")
    (folder / "deep" / "loop").symlink_to(folder)
    argv = [str(run), str(folder), str(folder / "*.png"), str(folder / "notes.txt"), "--device", "cpu"]
    rows = program.main([*argv, "--top-k", "2", "--output", str(tmp_path / "out.json")])
    assert "6 files at 16 x 16 pixels, 3 of them could not be read" in capsys.readouterr().err
    files = [str(folder / name) for name in ("9.png", "10.png", "deep/a.webp", "deep/broken.jpg", latin, "notes.txt")]
    text = (tmp_path / "out.json").read_text()
    written = json.loads(text)
    assert len(text.splitlines()) == 6 + 2
    assert [row["file"] for row in written] == files == [row.file for row in rows]
    assert [row["names"] for row in written] == [row.names for row in rows]
    assert [bool(row["error"]) for row in written] == [False, False, False, True, True, True]

    program.main([*argv, "--top-k", "2", "--output", str(tmp_path / "out.csv")])
    with open(tmp_path / "out.csv", newline="", errors="surrogateescape") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["file", "name_1", "probability_1", "name_2", "probability_2", "error"]
    for line, row in zip(lines, written, strict=True):
        assert line["file"] == row["file"] and line["error"] == (row["error"] or "")
        assert [line["name_1"], line["name_2"]] == (row["names"] or ["", ""])
        assert line["probability_1"] == (f"{row['probabilities'][0]:.6f}" if row["names"] else "")

    capsys.readouterr()
    program.main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].split()[0] == files[0] and lines[0].count("%") == 3
    assert lines[3].startswith(files[3]) and "not read: cannot identify image file" in lines[3]


def expect_error(capsys, argv: list[str], code: int, *fragments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(argv)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == code and line.startswith("hyena_vision.predict: error: "), line
    assert all(fragment in line for fragment in fragments), line


def test_what_is_wrong_is_one_line(run, photos, tmp_path, capsys):
    best, here = str(run / "model_best.pth.tar"), str(photos)
    plain, empty = tmp_path / "plain.pth", tmp_path / "empty"
    torch.save(load(run)["state_dict"], plain)
    empty.mkdir()
    for argv, code, *fragments in [
        (["hyena2d_vit_smal", here], 1, "'hyena2d_vit_smal'", "did you mean hyena2d_vit_small"),
        (["hyena2d_vit_small", here], 1, "cannot load the weights of hyena2d_vit_small"),
        (["no/run", here], 1, "no such file or folder: no/run"),
        ([str(empty), here], 1, str(empty), "model.safetensors"),
        ([str(plain), here], 1, str(plain), "config.json"),
        ([best, str(empty)], 1, f"no images in {empty}"),
        ([best, "nothing*.png"], 1, "no such file or folder: nothing*.png"),
        ([best, here, "--output", "rows.xlsx"], 2, "--output", ".csv or .json", "rows.xlsx"),
        ([best, here, "--output", f"{tmp_path}/none/rows.csv"], 2, "--output", f"{tmp_path}/none"),
        ([best, here, "--img-size", "15"], 1, "15"),
        ([best, here, "--amp", "--amp-dtype", "float16", "--device", "cpu"], 2, "--amp", "float16"),
        ([best, here, "--top-k", "0"], 2, "--top-k", "0"),
        ([best, here, "--device", "nonsense"], 2, "--device", "nonsense"),
        ([best], 2, "PATH"),
    ]:
        expect_error(capsys, argv, code, *fragments)


def test_weights_without_arguments_take_a_config_by_name(run, photos, tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save(load(run, "model_best.pth.tar")["state_dict"], plain)
    _, expected = table(list(predict(run, photos, device="cpu")))
    _, probabilities = table(list(predict(plain, photos, config=run / "config.json", device="cpu")))
    torch.testing.assert_close(probabilities, expected)


def test_mixed_precision_is_near(run, photos):
    _, expected = table(list(predict(run, photos, device="cpu")))
    _, probabilities = table(list(predict(run, photos, amp=True, device="cpu")))
    assert 0 < (probabilities - expected).abs().max() < 0.02


def test_images_are_read_as_the_run_has_read_them(run, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "args.yaml").write_text("no_exif: true\ninput_img_mode: YCbCr\n")
    loaded = pretrained.load(tmp_path)
    image, exif = Image.new("RGB", (20, 10), "red"), Image.Exif()
    image.paste("blue", (0, 0, 10, 10))
    exif[0x0112] = 3
    image.save(tmp_path / "image.png", exif=exif)
    pixels = loaded.preparation()(str(tmp_path / "image.png")) * 0.5 + 0.5
    blue, red = pixels[:, 8, 2], pixels[:, 8, 13]
    torch.testing.assert_close(blue, torch.tensor([29, 255, 107]) / 255, atol=0.01, rtol=0)
    torch.testing.assert_close(red, torch.tensor([76, 85, 255]) / 255, atol=0.01, rtol=0)
    (tmp_path / "args.yaml").write_text("[")
    with pytest.raises(UserError, match=r"args.yaml"):
        pretrained.load(tmp_path)


def test_worker_processes_get_the_preparation_alone(run, photos):
    loaded = pretrained.load(run)
    dataset = program._Files(find_files([photos]), loaded)
    content = pickle.dumps(dataset)
    assert len(content) < 20_000
    assert torch.equal(pickle.loads(content)[0][1], dataset[0][1])


def test_a_path_may_hold_the_signs_of_a_glob(tmp_path):
    image = tmp_path / "a[1].png"
    image.touch()
    assert find_files([image]) == [str(image)] == find_files([tmp_path, image])
    with pytest.raises(DataError, match="no such"):
        find_files([tmp_path / "b[1].png"])


def test_a_reader_of_the_table_may_leave(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        program._print("a table")
        print("what comes after", flush=True)


@pytest.mark.parametrize("main, argv", [(program.main, []), (visualize.main, []), (visualize.main, ["filters"])])
def test_help_is_that_of_the_program(capsys, main, argv):
    with pytest.raises(SystemExit, match="0"):
        main([*argv, "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: hyena_vision.") and "-c RECIPE.yaml" not in text and len(text.splitlines()) < 40
