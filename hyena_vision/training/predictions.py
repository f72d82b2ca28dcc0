"""What a model said of each image of a validation set, and what follows: accuracy by class, confusions, mistakes."""

import copy
import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from timm.utils import natural_key
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from hyena_vision.data import class_names
from hyena_vision.training.checkpoint_files import replace_file
from hyena_vision.training.distributed import gather_objects
from hyena_vision.training.errors import UserError


class Prediction(NamedTuple):
    """One image."""

    index: int  # in the data set
    file: str  # of the image, as the data set names it; empty where it has no files
    label: str  # class that it belongs to
    prediction: str  # class of the largest logit
    probability: float  # of that class, by softmax
    label_probability: float  # of the class that it belongs to


class ClassResult(NamedTuple):
    """One class."""

    name: str
    images: int
    right: int
    confusions: list[tuple[str, int]]  # classes that its images were taken for and how often, most frequent first

    @property
    def accuracy(self) -> float:
        """Percentage of its images that were right, NaN where it has none."""
        return 100 * self.right / self.images if self.images else float("nan")


class Described(NamedTuple):
    """What a data set calls its classes and images, and how to get a picture; None where it does not tell."""

    names: list[str] | None
    files: list[str] | None
    picture: Callable[[int], Image.Image] | None


def describe(dataset: Dataset, class_to_idx: dict[str, int] | None) -> Described:
    """Return what a validation set calls its images, its pictures before any transform, and the names of classes."""
    names = class_names(class_to_idx) if class_to_idx else None
    if isinstance(dataset, IterableDataset):
        return Described(names, None, None)
    files = [dataset.filename(index) for index in range(len(dataset))] if hasattr(dataset, "filename") else None
    plain = copy.copy(dataset)
    plain.transform = None
    return Described(names, files, lambda index: plain[index][0])


class Collector:
    """Collects the logits of a validation, batch by batch, on every process.

    Args:
        first: Index in the data set of this process's first image.
        step: Distance to the next one, the number of processes.
    """

    def __init__(self, first: int = 0, step: int = 1):
        """Begin with nothing."""
        self.next, self.step, self.classes = first, step, 0
        self.batches: list[tuple[Tensor, ...]] = []

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Take in a batch.

        Args:
            logits: (B, classes), of images in the order of the data set.
            target: (B,) class indices; those below 0 are not counted.
        """
        self.classes = logits.shape[1]
        indices = self.next + self.step * torch.arange(len(target))
        self.next += self.step * len(target)
        counted = target >= 0
        probabilities = logits[counted].float().softmax(-1)
        top = probabilities.max(-1)
        of_label = probabilities.gather(1, target[counted, None]).squeeze(1)
        values = target[counted], top.indices, top.values, of_label
        self.batches.append((indices[counted.cpu()], *(value.cpu() for value in values)))

    def predictions(self, names: Sequence[str] | None = None, files: Sequence[str] | None = None) -> list[Prediction]:
        """Return the predictions of all processes in the order of the data set. All of them call it together.

        Args:
            names: Names of the classes by index; numbers stand for those that have none.
            files: Names of the images by index in the data set, or None.
        """
        names = [str(number) for number in range(self.classes)] if names is None else list(names)
        names += [str(number) for number in range(len(names), self.classes)]
        columns = [torch.cat(parts).tolist() for parts in zip(*self.batches, strict=True)]
        rows = sorted(row for part in gather_objects(list(zip(*columns, strict=True))) for row in part)
        return [
            Prediction(
                index,
                files[index] if files is not None else "",
                names[label],
                names[predicted],
                round(probability, 6),
                round(label_probability, 6),
            )
            for index, label, predicted, probability, label_probability in rows
        ]


def write_predictions(path: str, rows: Sequence[Prediction]) -> None:
    """Write predictions as CSV, a line per image.

    Raises:
        UserError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Prediction._fields)
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode("utf-8", errors="surrogateescape"))


def read_predictions(path: str) -> list[Prediction]:
    """Read what `write_predictions` wrote.

    Raises:
        UserError: The file is missing, or is not of that kind.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != Prediction._fields:
            raise ValueError(f"expected the columns {', '.join(Prediction._fields)}, got {', '.join(header)}")
        return [Prediction(int(line[0]), *line[1:4], *map(float, line[4:])) for line in lines]
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"cannot read predictions {path}: {error}") from error


def accuracy_of(rows: Sequence[Prediction]) -> float:
    """Return the percentage of right predictions."""
    return 100 * sum(row.prediction == row.label for row in rows) / len(rows)


def results_by_class(rows: Sequence[Prediction]) -> list[ClassResult]:
    """Return the result of each class that has images or was predicted, by name (2 before 10)."""
    names = {name for row in rows for name in (row.label, row.prediction)}
    taken_for: dict[str, Counter] = {name: Counter() for name in sorted(names, key=natural_key)}
    for row in rows:
        taken_for[row.label][row.prediction] += 1
    return [
        ClassResult(
            name,
            counts.total(),
            counts[name],
            [(other, count) for other, count in counts.most_common() if other != name],
        )
        for name, counts in taken_for.items()
    ]


def confusion_matrix(rows: Sequence[Prediction], names: Sequence[str]) -> list[list[int]]:
    """Return how many images of each class (row) were taken for each class (column), classes in the order given."""
    counts = Counter((row.label, row.prediction) for row in rows)
    return [[counts[label, prediction] for prediction in names] for label in names]


def certain_mistakes(rows: Sequence[Prediction], count: int = 24) -> list[Prediction]:
    """Return the wrong predictions with the largest probability, the most certain first."""
    wrong = [row for row in rows if row.prediction != row.label]
    return sorted(wrong, key=lambda row: (-row.probability, row.index))[:count]
