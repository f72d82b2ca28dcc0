import os
from collections import Counter

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from hyena_vision.data import DataError, FolderReader, create_dataset, find_split


def write(root, *names: str):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_plain_folders_are_numbered_and_sorted_as_by_timm(tmp_path):
    names = [f"{label}/{number}.{kind}" for label in ("1", "10", "2", "b", "A", "a 3", "Z") for number in (1, 10, 2)
             for kind in ("jpg", "PNG")]  # fmt: skip
    write(tmp_path, *names)
    ours, timms = FolderReader(str(tmp_path)), ReaderImageFolder(str(tmp_path))
    assert ours.samples == timms.samples and len(ours) == len(names)
    assert ours.class_to_idx == timms.class_to_idx and list(ours.class_to_idx)[:3] == ["1", "2", "10"]
    for options in ({}, {"basename": True}, {"absolute": True}):
        assert ours.filenames(**options) == timms.filenames(**options)


def test_images_deeper_down_are_of_the_class_under_the_root(tmp_path):
    write(tmp_path, "cat/indoor/1.jpg", "cat/2.jpg", "dog/indoor/1.jpg", "dog/out/door/1.webp")
    reader = FolderReader(str(tmp_path))
    assert reader.counts() == {"cat": 2, "dog": 2}
    assert [(os.path.relpath(path, tmp_path), label) for path, label in reader.samples if "indoor" in path] == [
        (os.path.join("cat", "indoor", "1.jpg"), 0),
        (os.path.join("dog", "indoor", "1.jpg"), 1),
    ]


def test_images_without_a_class_and_links_that_lead_back_are_refused(tmp_path):
    beside = write(tmp_path / "beside", "a/1.jpg", "2.jpg", "3.png")
    with pytest.raises(DataError, match="beside/2.jpg and 1 more images lie beside the class folders"):
        FolderReader(str(beside))
    for name, target in (("root", "."), ("parent", ".."), ("other", "b")):
        root = write(tmp_path / name, "a/1.jpg", "b/1.jpg")
        (root / ("c" if target == "b" else "a/link")).symlink_to(root / target, target_is_directory=True)
        with pytest.raises(DataError, match=f"{name}/.* and {root}.* are one folder by a link"):
            FolderReader(str(root))
    elsewhere = write(tmp_path / "elsewhere", "1.jpg")
    root = write(tmp_path / "linked", "a/1.jpg")
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    assert FolderReader(str(root)).counts() == {"a": 1, "b": 1}


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, "a/1.jpg", "a/2.psd", "a/3.psd", "b/1.bmp", "b/notes", "list.txt", "b/._1.bmp")
    write(tmp_path, ".ipynb_checkpoints/1.jpg", "empty/x/y.PSD")
    reader = FolderReader(str(tmp_path))
    assert reader.class_to_idx == {"a": 0, "b": 1}
    assert reader.left_out() == (
        "; left out: 3 .psd, 1 without extension, 1 .txt (not an image that is read here); 2 hidden; "
        "empty (class folders without images)"
    )
    with pytest.raises(DataError, match=r"no images in class folders of .*1 .PSD|1 .psd"):
        FolderReader(str(tmp_path / "empty"))
    assert FolderReader(str(write(tmp_path / "other", "a/1.jpg", "a/2.png")), input_key=".png").counts() == {"a": 1}


def test_a_class_map_chooses_the_classes(tmp_path):
    write(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg")
    (tmp_path / "map.txt").write_text("c\nd\na\n")
    reader = FolderReader(str(tmp_path), "map.txt")
    assert reader.counts() == {"c": 1, "d": 0, "a": 1} and reader.missing == ["d"]
    assert "b 2 (not in the class map)" in reader.left_out()
    (tmp_path / "map.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"no images.*\(not in the class map\)"):
        FolderReader(str(tmp_path), "map.txt")


@pytest.fixture
def uneven(tmp_path) -> str:
    """70, 20, 9 and 1 images of four classes."""
    sizes = {"a": 70, "b": 20, "c": 9, "d": 1}
    return str(write(tmp_path / "uneven", *(f"{name}/{i}.jpg" for name, size in sizes.items() for i in range(size))))


def part(root: str, text: str) -> FolderReader:
    reader = FolderReader(root)
    reader.slice(text)
    return reader


def test_slices_hold_and_mix_the_classes(uneven):
    whole = FolderReader(uneven).samples
    for first, second in (("[:80%]", "[80%:]"), ("[:37]", "[37:]"), ("[:-5]", "[-5:]"), ("[:12.5%]", "[12.5%:]")):
        one, other = part(uneven, first), part(uneven, second)
        assert sorted(one.samples + other.samples) == sorted(whole)
        assert not set(one.samples) & set(other.samples)
    assert [len(part(uneven, text)) for text in ("[:80%]", "[37:]", "[10:30]", "[-5:]", "[:]")] == [80, 63, 20, 5, 100]
    counts = part(uneven, "[:50%]").counts()
    assert counts["a"] == 35 and counts["b"] == 10 and counts["c"] in (4, 5)
    assert part(uneven, "[:50%]").class_to_idx == FolderReader(uneven).class_to_idx
    for text in ("[1]", "[a:b]", "[:80%", "[:80%]+[90%:]"):
        with pytest.raises(DataError, match="cannot read the slice"):
            part(uneven, text)


def held_out(root: str, fraction: float, seed: int, held_out: bool = True) -> list:
    reader = FolderReader(root)
    reader.hold_out(fraction, seed, held_out)
    return [(os.path.relpath(path, root), label) for path, label in reader.samples]


def test_what_is_held_out_is_stratified_and_follows_from_seed_and_names(uneven, tmp_path):
    val, train = held_out(uneven, 0.2, 0), held_out(uneven, 0.2, 0, held_out=False)
    assert Counter(label for _, label in val) == {0: 14, 1: 4, 2: 2}  # of the one image of d none
    assert len(train) + len(val) == 100 and not set(train) & set(val)
    os.rename(uneven, tmp_path / "moved")
    assert held_out(str(tmp_path / "moved"), 0.2, 0) == val
    assert held_out(str(tmp_path / "moved"), 0.2, 1) != val
    assert Counter(label for _, label in held_out(str(tmp_path / "moved"), 0.99, 0, False)) == {0: 1, 1: 1, 2: 1, 3: 1}
    write(tmp_path / "moved", *(f"b/new {number}.jpg" for number in range(5)))
    assert len(set(val) - set(held_out(str(tmp_path / "moved"), 0.2, 0))) <= 3  # the others stay where they are


def test_a_split_is_its_folder_and_never_all(tmp_path):
    root = str(write(tmp_path, "training/a/1.jpg", "val/a/1.jpg", "hold/a/1.jpg"))
    for split, folder in {"train": "training", "validation": "val", "hold": "hold", ".": ""}.items():
        assert os.path.join(find_split(root, split), "") == os.path.join(root, folder, "").replace("//", "/")
    assert find_split(os.path.join(root, "val"), "validation") == os.path.join(root, "val")
    assert find_split(root, "trian") is None and find_split(os.path.join(root, "hold"), "validation") is None
    for name, split in (
        ("", "trian"),
        ("folder", "trian[:1]"),
        ("torch/folder", "trian"),
        ("torch/folder", "hold[:1]"),
    ):
        with pytest.raises(DataError, match="no folder for the split"):
            create_dataset(name, root=root, split=split)
    with pytest.raises(ValueError, match="expected one of train"):
        create_dataset("torch/cifar10", root=root, split="trian")


def test_torchvisions_folders_are_read_in_the_same_way(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("I;16", (4, 4), 32768).save(tmp_path / "train" / "a" / "1.png")
    for name in ("folder", "torch/image_folder"):
        dataset = create_dataset(name, root=str(tmp_path), split="train", input_img_mode="L")
        assert dataset[0][0].mode == "L" and dataset[0][0].getpixel((0, 0)) == 128 and dataset[0][1] == 0
