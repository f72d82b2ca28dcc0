"""Folders of images as people have them, through the program's `main()`."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import timm
import torch
import yaml
from PIL import Image, features
from PIL.PngImagePlugin import PngImageFile
from trainer import QUICK, arguments, draw_images, expect_error, load, summary, train_imagenet

from hyena_vision.data import create_dataset
from hyena_vision.training.classes import check_head, match_labels
from hyena_vision.training.model import data_config
from hyena_vision.training.run_state import check_settings

OPEN = [flag for flag in QUICK if flag != "--num-classes"]  # the number of classes is left to the data
OPEN.remove("3")
LEARNS = ["--epochs", "5", "--smoothing", "0", "--scale", "0.8", "1.0", "--checkpoint-hist", "1"]
EVAL = ["--device", "cpu", "-j", "0", "--data-dir"]


def rename(folder: Path, *names: str) -> Path:
    """Give the classes blue, green and red other names."""
    for split in folder.iterdir():
        for old, new in zip(("blue", "green", "red"), names, strict=True):
            (split / old).rename(split / f"new {new}")
        for new in names:
            (split / f"new {new}").rename(split / new)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The data set of a run, whose classes are numbered 1, 10, 2 by its class map, and the folder of the run."""
    root = tmp_path_factory.mktemp("trained")
    data = rename(draw_images(root / "images", {"train": 8, "val": 5}), "1", "10", "2")
    for split in ("train", "val"):
        (data / split / "map.txt").write_text("1\n10\n2\n")
    argv = [*OPEN, *LEARNS, "--data-dir", str(data), "--output", str(root), "--experiment", "run"]
    return data, Path(train_imagenet.main([*argv, "--class-map", "map.txt"])["folder"])


def test_names_of_classes_are_in_all_that_a_run_writes(trained, caplog):
    _, folder = trained
    classes = {"1": 0, "10": 1, "2": 2}
    assert load(folder)["class_to_idx"] == classes
    settings = yaml.safe_load((folder / "args.yaml").read_text())
    assert settings["class_to_idx"] == classes and settings["num_classes"] is None  # which is found anew
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["1", "10", "2"] and config["num_classes"] == 3
    again = train_imagenet.parse_args(["-c", str(folder / "args.yaml"), "--device", "cpu"])
    assert again.class_to_idx == classes  # accepted, and no setting that a resumed run must have
    check_settings("", load(folder), {**load(folder)["args"], "class_to_idx": classes})


@pytest.mark.parametrize("file", ["last.pth.tar", "model.safetensors"])
def test_evaluation_matches_classes_by_name(trained, tmp_path, capsys, caplog, file):
    data, folder = trained
    argv = ["--eval", str(folder / file), *(QUICK if file == "model.safetensors" else []), *EVAL]
    best = max(float(row["eval_top1"]) for row in summary(folder))
    assert best > 80
    plain = train_imagenet.main([*argv, str(data), "--class-map", ""])  # numbered 1, 2, 10
    assert plain["top1"] >= (best if file == "model.safetensors" else float(summary(folder)[-1]["eval_top1"]))
    assert "numbers its classes in another order" in caplog.text

    shutil.copytree(data / "val", tmp_path / "some" / "val", ignore=shutil.ignore_patterns("map.txt", "1"))
    caplog.clear()
    some = train_imagenet.main([*argv, str(tmp_path / "some"), "--class-map", ""])
    assert some["top1"] > 70 and "no images of 1 of 3 classes: 1." in caplog.text and "(10 images)" in caplog.text
    (tmp_path / "some" / "val" / "10").rename(tmp_path / "some" / "val" / "zebra")
    expected = ["has classes that", file, "has not: zebra; it has 1, 10, 2"]
    expect_error(capsys, [*argv, str(tmp_path / "some"), "--class-map", ""], 2, *expected)


@pytest.mark.filterwarnings("error:constrained_layout")  # the curves of a model with a long path
def test_resumed_and_warm_runs_match_classes_by_name(trained, tmp_path, capsys, caplog):
    data, folder = trained
    start = [*OPEN, *LEARNS, "--output", str(tmp_path), "--data-dir"]
    warm = ["--initial-checkpoint", str(folder / "model_best.pth.tar"), "--epochs", "1", "--lr", "1e-9", "--experiment"]
    resumed = ["--resume", str(folder / "last.pth.tar"), "--class-map", "map.txt", "--epochs", "5", "--experiment"]
    run = train_imagenet.main([*start, str(data), *warm, "warm"])
    assert "Its optimizer is not used: --resume would go on with that run" in caplog.text
    assert run["results"][0]["validation"]["top1"] == max(float(row["eval_top1"]) for row in summary(folder))
    assert load(run["folder"])["class_to_idx"] == {"1": 0, "10": 1, "2": 2}
    # A model with names starts with its head where the classes are its own, and without it elsewhere
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, exported)
    local = ["--model", f"local-dir:{exported}", "--model-kwargs", "--pretrained", *warm[2:]]
    run = train_imagenet.main([*start, str(data), *local, "local"])
    assert run["results"][0]["validation"]["top1"] == max(float(row["eval_top1"]) for row in summary(folder))

    other = tmp_path / "other"
    shutil.copytree(data, other, ignore=shutil.ignore_patterns("map.txt"))
    for split in ("train", "val"):
        (other / split / "10").rename(other / split / "zebra")
        (other / split / "map.txt").write_text("1\nzebra\n2\n")
    for argv in ([*warm, "a"], [*resumed, "b"]):
        expect_error(capsys, [*start, str(other), *argv], 2, "has classes that", "has not: zebra; it has 1, 10, 2")
    shutil.rmtree(other / "train" / "zebra")
    shutil.rmtree(other / "val" / "zebra")
    expect_error(capsys, [*start, str(other), *warm, "c"], 2, "no images of the classes 10 of")
    caplog.clear()
    train_imagenet.main([*start, str(other), *local, "other", "-b", "16"])
    assert "knows other classes (1, 10, 2): its head starts anew" in caplog.text


def test_the_number_of_classes_is_that_of_the_data(images, tmp_path, caplog):
    argv = [*OPEN, "--output", str(tmp_path), "--epochs", "1"]
    folder = train_imagenet.main([*argv, "--data-dir", str(images), "--experiment", "run"])["folder"]
    assert load(folder)["state_dict"]["head.weight"].shape == (3, 16)
    assert load(folder)["args"]["num_classes"] is None and "--num-classes is not given: the model has 3" in caplog.text
    assert train_imagenet.main(["--eval", f"{folder}/last.pth.tar", "--device", "cpu", "-j", "0"])["top1"] > 0
    # A run of before this was so goes on with the model's own number
    old = load(folder)
    del old["class_to_idx"]
    old["state_dict"]["head.weight"] = old["state_dict"]["head.weight"].new_zeros(10, 16)
    old["state_dict"]["head.bias"] = old["state_dict"]["head.bias"].new_zeros(10)
    del old["optimizer"]
    torch.save(old, tmp_path / "old.pth.tar")
    resumed = ["--resume", str(tmp_path / "old.pth.tar"), "--no-resume-opt", "--epochs", "2", "--resume-force"]
    folder = train_imagenet.main([*argv, *resumed, "--data-dir", str(images), "--experiment", "old"])["folder"]
    assert load(folder)["state_dict"]["head.weight"].shape == (10, 16)
    again = ["--resume", f"{folder}/last.pth.tar", "--epochs", "3", "--resume-force"]
    train_imagenet.main([*argv, *again, "--data-dir", str(images), "--experiment", "older"])
    assert "label_names" not in json.loads((tmp_path / "older" / "config.json").read_text())
    assert "old.pth.tar does not name its classes: labels go by their order, blue, green, red." in caplog.text


def test_a_head_for_classes_without_names_is_said(caplog):
    for argv, said in (([], True), (["--num-classes", "4"], False)):
        caplog.clear()
        assert check_head(arguments("--dataset", "wds/some", *argv), None, 1000) is None
        assert ("wds/some does not name its classes: the model has its own number, 1000" in caplog.text) is said


def test_what_was_found_left_out_and_dropped_is_said(tmp_path, caplog):
    data = draw_images(tmp_path / "images", {"train": 7, "val": 2})
    for number in range(15):
        (data / "train" / "red" / f"{number}.psd").write_bytes(b"layers")
    (data / "train" / "green" / "indoor").mkdir()
    kinds = ["bmp", "gif", "tif", "ppm", "jp2", *(kind for kind in ("webp", "avif") if features.check(kind))]
    for kind in kinds:
        Image.new("RGB", (16, 16), "green").save(data / "train" / "green" / "indoor" / f"1.{kind}")
    (data / "val" / "red" / "notes.txt").write_text("red")
    train_imagenet.main(
        [*OPEN, "--data-dir", str(data), "--output", str(tmp_path), "--epochs", "1", "--val-interval", "1"]
    )
    found = 21 + len(kinds)
    assert (
        f"Training on {data}/train: {found} images of 3 classes (blue 7, green {7 + len(kinds)}, red 7); "
        "left out: 15 .psd (not an image that is read here)." in caplog.messages
    )
    assert f"Validating on {data}/val: 6 images of 3 classes (blue 2, green 2, red 2); left out: 1 .txt" in caplog.text
    assert f"An epoch is 3 batches of 8: {found - 24} of the {found} training images are left out" in caplog.text


NO_FRACTION = ["argument --val-fraction:", "--val-fraction 0 takes"]
WRONG = {
    "train split": (["--train-split", "trian", "--val-split", ""], ["--train-split", "'trian'", "train, val"]),
    "val split": (["--val-split", "holdout"], ["--val-split", "'holdout'", "train, val"]),
    "slice of no split": (["--train-split", "trian[:50%]"], ["--train-split", "'trian[:50%]'"]),
    "no slice": (["--train-split", "train[half]"], ["'[half]'", "[FIRST:LAST]"]),
    "empty slice": (["--train-split", "train[:0]"], ["'train[:0]'", "no images"]),
    "no name": (["--train-split", ""], ["--train-split", "''"]),
    "fraction": (["--val-fraction", "1.5"], ["--val-fraction", "1.5"]),
    "validation twice": (["--val-fraction", "0.2"], ["--val-fraction", "val"]),
    "fraction of a slice": (["--val-fraction", "0.2", "--train-split", "train[:9]"], ["train[:9]", *NO_FRACTION]),
    "fraction of digits": (["--val-fraction", "0.2", "--dataset", "sklearn/digits"], ["digits", *NO_FRACTION]),
    "samples": (["--train-num-samples", "5"], ["--train-num-samples", "got 5"]),
    "samples to validate": (["--val-num-samples", "5"], ["--val-num-samples", "got 5"]),
    "repeats": (["--epoch-repeats", "2", "--dataset", "sklearn/digits"], ["--epoch-repeats", "sklearn/digits", "2.0"]),
    "channels": (["--in-chans", "5"], ["--in-chans", "5"]),
    "mode": (["--input-img-mode", "L"], ["--input-img-mode", "3 channels", "got L of 1"]),
    "no mode": (["--input-img-mode", "RBG"], ["--input-img-mode", "'RBG'"]),
    "policy": (["--in-chans", "4", "--aa", "3a"], ["--aa", "4"]),
    "class map": (["--class-map", "map.txt"], ["--class-map", "map.txt", "classes without images", "indigo"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_the_data_is_one_line(images, tmp_path, capsys, monkeypatch, name):
    argv, fragments = WRONG[name]
    monkeypatch.chdir(tmp_path)
    Path("map.txt").write_text("red\nindigo\n")
    expect_error(capsys, [*QUICK, "--data-dir", str(images), "--output", "out", *argv], 2, *fragments)
    assert not Path("out").exists()


def test_folders_that_are_not_what_they_seem_are_one_line(trained, tmp_path, capsys, caplog):
    data, folder = trained
    flat = ["--data-dir", str(data / "train")]
    shutil.copytree(data / "train", tmp_path / "photos")
    flat = ["--data-dir", str(tmp_path / "photos")]
    start = [*QUICK, "--output", str(tmp_path / "out")]
    for argv in ([*start, *flat], ["--eval", str(folder / "last.pth.tar"), *EVAL, flat[1]]):
        expect_error(capsys, argv, 2, "no folder for the split", "1, 10, 2", "--val-fraction 0.2", "-split .")
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "stray.png")
    expect_error(capsys, [*start, *flat, "--val-fraction", "0.2"], 2, f"{tmp_path}/photos/stray.png", "beside")
    (tmp_path / "photos" / "stray.png").unlink()
    (tmp_path / "photos" / "1" / "back").symlink_to(tmp_path / "photos", target_is_directory=True)
    expect_error(
        capsys,
        [*start, *flat, "--val-fraction", "0.2"],
        2,
        f"{tmp_path}/photos/1/back and {tmp_path}/photos are one folder",
    )
    (tmp_path / "photos" / "1" / "back").unlink()
    (tmp_path / "above").mkdir()
    photos = (tmp_path / "photos").rename(tmp_path / "above" / "photos")
    (tmp_path / "Kaggle").mkdir()
    for name in ("Training", "Testing"):
        shutil.copytree(photos, tmp_path / "Kaggle" / name)
    argv = [*start, "--val-fraction", "0.2", "--data-dir", str(tmp_path / "Kaggle")]
    expect_error(capsys, argv, 2, "argument --num-classes")  # the last thing before a run begins
    expected = "Each of Testing, Training has the same folders: 1, 10, 2. If these are the classes, name the splits"
    assert expected in caplog.text
    argv = [*start, "--val-fraction", "0.2", "--num-classes", "1", "--data-dir", str(photos.parent)]
    expect_error(capsys, argv, 2, "two classes or more, got only photos", f"--data-dir {photos}")
    assert not (tmp_path / "out").exists()


def test_slices_of_a_split_train_and_validate_apart(images, tmp_path, caplog):
    argv = [*QUICK, "--data-dir", str(images), "--output", str(tmp_path), "--epochs", "1", "-b", "4", "--experiment"]
    train_imagenet.main([*argv, "apart", "--train-split", "train[:75%]", "--val-split", "train[75%:]"])
    assert f"Training on {images}/train[:75%]: 18 images of 3 classes (blue 6, green 6, red 6)" in caplog.text
    assert f"Validating on {images}/train[75%:]: 6 images of 3 classes (blue 2, green 2, red 2)" in caplog.text
    assert "trained on as well" not in caplog.text
    train_imagenet.main([*argv, "both", "--train-split", "train[:75%]", "--val-split", "train[50%:]"])
    assert "6 of the 12 images to validate on are trained on as well" in caplog.text


def test_one_folder_is_divided_the_same_way_in_each_part_of_a_run(images, tmp_path, capsys, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(images / "train", photos)
    argv = [*QUICK, "--output", str(tmp_path), "--data-dir", str(photos), "--val-fraction", "0.25", "--epochs", "2"]
    argv += ["--checkpoint-hist", "2", "--experiment"]
    run = train_imagenet.main([*argv, "run"])
    assert f"Training on all but 0.25 of {photos}: 18 images of 3 classes (blue 6, green 6, red 6)" in caplog.text
    assert f"Validating on 0.25 of {photos}: 6 images of 3 classes (blue 2, green 2, red 2)" in caplog.text
    assert "2 of the 18 training images are left out" in caplog.text
    checkpoint = f"{run['folder']}/last.pth.tar"
    moved = photos.rename(tmp_path / "moved")
    for data in ([str(moved)], [str(moved), "--val-split", "val"]):
        again = train_imagenet.main(["--eval", checkpoint, *EVAL, *data])
        assert {name: again[name] for name in ("loss", "top1", "top5")} == run["results"][-1]["validation"]
    everything = train_imagenet.main(["--eval", checkpoint, *EVAL, str(moved), "--val-split", "."])
    assert everything["loss"] != again["loss"] and "(24 images)" in caplog.text
    # A validation folder is not divided, another seed would be another split, and a name that is none stays none
    assert train_imagenet.main(["--eval", checkpoint, *EVAL, str(images)])["loss"] != again["loss"]
    for file in (checkpoint, f"{run['folder']}/model.safetensors"):
        expect_error(capsys, ["--eval", file, *EVAL, str(moved), "--seed", "1"], 2, "--seed", "42", "got 1")
    part = train_imagenet.main(["--eval", checkpoint, *EVAL, str(images), "--val-split", "train[:6]"])
    assert part["top1"] > 0 and "train[:6]: 6 images of 3 classes (blue 2, green 2, red 2)" in caplog.text
    expect_error(capsys, ["--eval", checkpoint, *EVAL, str(moved), "--val-split", "hold"], 2, "--val-split", "'hold'")
    expect_error(capsys, [*argv, "run", "--resume", "auto", "--val-fraction", "0.5"], 2, "val_fraction 0.25 (now 0.5)")
    resumed = [*argv, "again", "--data-dir", str(moved), "--resume", f"{run['folder']}/checkpoint-0.pth.tar"]
    assert train_imagenet.main(resumed)["results"][-1] == run["results"][-1]
    assert "held out when" not in caplog.text
    for index in range(8):  # now four of the class are held out, of which some were trained on
        shutil.copy(moved / "red" / "0.png", moved / "red" / f"more-{index}.png")
    resumed[resumed.index("again")] = "more"
    for line in (["--eval", checkpoint, *EVAL, str(moved)], [*resumed, "--epochs", "3"]):
        caplog.clear()
        train_imagenet.main(line)
        assert "images of 8 that were not held out when" in caplog.text
    other = train_imagenet.main([*argv, "other", "--data-dir", str(moved), "--seed", "1"])
    assert other["results"][-1] != run["results"][-1]


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    """Photos that say that they lie on their side: a class of dark and one of light halves, in 8 bits and in 16."""
    folder = tmp_path_factory.mktemp("grey")
    for split, count in (("train", 4), ("val", 4)):
        for name, side in (("left", slice(0, 8)), ("right", slice(8, 16))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = numpy.zeros((16, 16))
                pixels[:, side] = 0.8
                stored = numpy.rot90(pixels)  # a quarter to the left; orientation 6 turns it back
                exif = Image.Exif()
                exif[0x0112] = 6
                deep = number % 2 == 1
                values = (stored * 65535).astype("uint16") if deep else (stored * 255).astype("uint8")
                Image.fromarray(values).save(folder / split / name / f"{number}.png", exif=exif)
    return folder


@pytest.mark.parametrize("channels", ["1", "3", "4"])
def test_the_model_sees_upright_pictures_of_its_channels(grey, tmp_path, monkeypatch, channels):
    seen = []
    place = train_imagenet.place_model

    def watch(args, model, device):
        model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0]))
        return place(args, model, device)

    monkeypatch.setattr(train_imagenet, "place_model", watch)
    argv = [*OPEN, "--data-dir", str(grey), "--output", str(tmp_path), "--experiment", "run", "--epochs", "1"]
    argv += ["--in-chans", channels, "--mean", "0", "--std", "1", "--color-jitter", "0.1", "--crop-pct", "1"]
    folder = train_imagenet.main(argv)["folder"]
    assert load(folder)["state_dict"]["patch_embed.proj.weight"].shape[1] == int(channels)
    for flags in ([], ["--no-exif"]):
        seen.clear()
        train_imagenet.main(["--eval", f"{folder}/last.pth.tar", "--device", "cpu", "-j", "0", *flags])
        (batch,) = seen
        first = batch[:4, 0]  # of the class with its left half light
        light, dark = (first[:, 8:], first[:, :8]) if flags else (first[:, :, :8], first[:, :, 8:])
        assert (light - 0.8).abs().max() < 0.01 and dark.max() == 0
        assert channels != "4" or (batch[:, 3] == 1).all()


def test_a_model_of_four_channels_has_four_means(tmp_path):
    args = arguments("--model", "resnet10t", "--in-chans", "4")
    config = data_config(args, timm.create_model("resnet10t", in_chans=4))
    assert config["mean"] == (pytest.approx((0.485 + 0.456 + 0.406) / 3),) * 4 and len(config["std"]) == 4


def test_whatever_a_decoder_raises_is_the_path_of_the_image(tmp_path, capsys, caplog, monkeypatch):
    """The decoder of AVIF, for instance, raises RuntimeError for damaged files."""
    data, load = draw_images(tmp_path / "images", {"train": 8, "val": 1}), PngImageFile.load

    def load_unless_damaged(self):
        if self.size == (17, 17):
            raise RuntimeError("Failed to decode image")
        return load(self)

    monkeypatch.setattr(PngImageFile, "load", load_unless_damaged)
    bad = data / "train" / "green" / "2.png"
    Image.new("RGB", (17, 17)).save(bad)
    argv = [*QUICK, "--data-dir", str(data), "--output", str(tmp_path), "-b", "24", "--epochs", "1", "--experiment"]
    expect_error(capsys, [*argv, "stop"], 1, f"cannot read image {bad}: Failed to decode")
    train_imagenet.main([*argv, "skip", "--on-bad-image", "skip"])
    assert "Epoch 0: 1 images could not be read and were skipped." in caplog.messages


def test_labels_of_any_data_set_are_matched():
    digits = create_dataset("sklearn/digits", split="validation")
    known = {str(name): 9 - name for name in range(10)}
    before = [digits[index][1] for index in range(20)]
    match_labels(arguments(), digits, "it", known, "the model", all_of_them=True)
    assert [digits[index][1] for index in range(20)] == [9 - label for label in before]


def test_timm_reads_the_names_of_an_exported_model(trained, tmp_path):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(trained[1] / name, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == ["1", "10", "2"]
