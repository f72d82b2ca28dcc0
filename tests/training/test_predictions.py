"""Predictions of a validation: collected over batches and processes, kept as CSV, summed up by class."""

import math

import pytest
import torch

from hyena_vision.training import predictions
from hyena_vision.training.errors import UserError
from hyena_vision.training.predictions import Collector, Prediction

NAMES = ["ant", "bee", "cow"]
ROWS = [
    Prediction(0, "a/1,2.png", "2", "2", 0.9, 0.9),
    Prediction(1, 'b"\u00fc.png', "2", "10", 0.8, 0.1),
    Prediction(2, "", "10", "2", 0.95, 0.05),
    Prediction(3, "c.png", "2", "10", 0.8, 0.2),
    Prediction(4, "d.png", "2", "7", 0.5, 0.25),
]


def test_collected_rows_follow_from_the_logits():
    logits = torch.tensor([[4.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0], [0.0, 5.0, 0.0]])
    collector = Collector()
    collector.add(logits[:2], torch.tensor([0, 1]))
    collector.add(logits[2:], torch.tensor([-1, 1]))  # a bad image
    rows = collector.predictions(NAMES, [f"{number}.png" for number in range(4)])
    assert [row[:4] for row in rows] == [
        (0, "0.png", "ant", "ant"),
        (1, "1.png", "bee", "cow"),
        (3, "3.png", "bee", "bee"),
    ]
    exact = logits.softmax(1)
    for row, label, predicted in zip(rows, (0, 1, 1), (0, 2, 1), strict=True):
        assert row.probability == pytest.approx(exact[row.index, predicted].item(), abs=1e-6)
        assert row.label_probability == pytest.approx(exact[row.index, label].item(), abs=1e-6)


def test_rows_of_several_processes_are_in_the_order_of_the_data_set(monkeypatch):
    parts = []
    for rank in range(2):
        collector = Collector(first=rank, step=2)
        for index in range(rank, 5, 2):
            collector.add(torch.eye(3)[None, index % 3], torch.tensor([index % 3]))
        columns = [torch.cat(part).tolist() for part in zip(*collector.batches, strict=True)]
        parts.append(list(zip(*columns, strict=True)))
    monkeypatch.setattr(predictions, "gather_objects", lambda own: parts)
    rows = collector.predictions(None, None)
    assert [(row.index, row.label, row.prediction) for row in rows] == [(i, str(i % 3), str(i % 3)) for i in range(5)]


def test_csv_gives_back_the_rows(tmp_path):
    path = str(tmp_path / "predictions.csv")
    predictions.write_predictions(path, ROWS)
    assert predictions.read_predictions(path) == ROWS


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "index,file,label,prediction,probability,label_probability\nx\n"]
)
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(UserError, match="cannot read predictions"):
        predictions.read_predictions(str(tmp_path / "other.csv"))


def test_results_confusions_and_mistakes():
    results = predictions.results_by_class(ROWS)
    assert [result[:3] for result in results] == [("2", 4, 1), ("7", 0, 0), ("10", 1, 0)]
    assert results[0].accuracy == 25 and math.isnan(results[1].accuracy)
    assert results[0].confusions == [("10", 2), ("7", 1)]
    assert predictions.confusion_matrix(ROWS, ["2", "7", "10"]) == [[1, 1, 2], [0, 0, 0], [1, 0, 0]]
    assert [row.index for row in predictions.certain_mistakes(ROWS, 3)] == [2, 1, 3]
