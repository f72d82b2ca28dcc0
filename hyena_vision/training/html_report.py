"""`report.html` of a run: curves, classes, confusions and mistakes in one file that needs no network."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image

from hyena_vision.training.checkpoint_files import replace_file
from hyena_vision.training.predictions import (
    ClassResult,
    Prediction,
    accuracy_of,
    certain_mistakes,
    confusion_matrix,
    results_by_class,
)

MATRIX_CLASSES = 40  # largest confusion matrix that is drawn
TABLE_CLASSES = 200  # most classes in the table; the worst are shown
COLORS = "#0b6e99", "#d1582b", "#3f8f4f", "#8054a0"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.note, figcaption { color: #5a6474; font-size: .85rem }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 1rem 0 }
.facts b { font-size: 1.25rem; display: block }
.row { display: flex; flex-wrap: wrap; gap: 1rem }
table { border-collapse: collapse } th, td { padding: .2rem .6rem; text-align: left } td.n, th.n { text-align: right }
table.list tr:nth-child(odd) td { background: #f4f6f8 }
.bar { background: #e4e8ec; width: 120px; height: .7rem; display: inline-block }
.bar i { background: #0b6e99; height: 100%; display: block }
table.matrix td { text-align: center; min-width: 1.8rem; padding: .15rem .3rem; font-size: .8rem }
table.matrix th { font-weight: 400; font-size: .8rem; padding: .15rem .3rem; text-align: right }
table.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left }
table.matrix.short thead th { writing-mode: horizontal-tb; transform: none; text-align: center }
.scroll { overflow-x: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem }
figure { margin: 0 }
figure img { width: 100%; height: 130px; object-fit: contain; background: #eef0f3 }
figcaption { overflow-wrap: anywhere } pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; font-size: .8rem }
"""


def write_html_report(
    path: str,
    title: str,
    facts: Mapping[str, str],
    rows: Sequence[Prediction],
    epochs: Sequence[Mapping[str, float]] = (),
    settings: str = "",
    picture: Callable[[int], Image.Image] | None = None,
) -> None:
    """Write the report.

    Args:
        path: HTML file to write.
        title: Its heading.
        facts: What stands at the top, value by name.
        rows: Predictions of the validation set.
        epochs: Rows of summary.csv for the curves; none for a checkpoint that is only validated.
        settings: Text of args.yaml.
        picture: Returns the image of an index in the data set, for the mistakes; None for a data set without.

    Raises:
        UserError: The file cannot be written.
    """
    classes = results_by_class(rows)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<div class="facts">' + "".join(f"<div><b>{_text(v)}</b>{_text(k)}</div>" for k, v in facts.items()) + "</div>",
        _curves(epochs),
        _class_table(classes),
        _confusions(rows, classes),
        _mistakes(rows, picture),
        f"<h2>Settings</h2><details><summary>args.yaml</summary><pre>{_text(settings)}</pre></details>"
        if settings
        else "",
    ]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{chr(10).join(parts)}</body></html>\n'
    replace_file(path, page.encode("utf-8", errors="replace"))


def describe_result(loss: float, rows: Sequence[Prediction]) -> dict[str, str]:
    """Return the first of the facts: accuracy, its mean over classes, loss, and what they are of."""
    classes = [result for result in results_by_class(rows) if result.images]
    mean = sum(result.accuracy for result in classes) / len(classes)
    top1 = f"{accuracy_of(rows):.2f} %"
    counts = {"validation images": f"{len(rows):,}", "classes": f"{len(classes):,}"}
    return {"top-1": top1, "mean accuracy of classes": f"{mean:.2f} %", "loss": f"{loss:.4f}", **counts}


def _text(value: object) -> str:
    return html.escape(str(value))


def _curves(epochs: Sequence[Mapping[str, float]]) -> str:
    if not epochs:
        return ""
    names = {"train_loss": "training", "eval_loss": "validation"}
    losses = {text: _points(epochs, column) for column, text in names.items()}
    accuracy = {"top-1": _points(epochs, "eval_top1")}
    charts = [_line_chart("Loss by epoch", losses), _line_chart("Validation top-1 (%) by epoch", accuracy)]
    return f'<h2>Curves</h2><div class="row">{"".join(charts)}</div>'


def _points(epochs: Sequence[Mapping[str, float]], column: str) -> list[tuple[float, float]]:
    found = [(row["epoch"] + 1, row[column]) for row in epochs if column in row]
    return [(x, y) for x, y in found if math.isfinite(y)]


def _line_chart(title: str, series: Mapping[str, list[tuple[float, float]]]) -> str:
    """Draw lines as SVG, 500 x 260 pixels; nothing for series without points."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs, ys = ([point[axis] for points in series.values() for point in points] for axis in (0, 1))
    (x0, x1), (y0, y1) = (min(xs), max(max(xs), min(xs) + 1)), (min(ys), max(ys))
    if y0 == y1:
        y0, y1 = y0 - 1, y1 + 1
    left, right, top, bottom = 50, 490, 30, 225

    def place(x: float, y: float) -> str:
        return (
            f"{left + (x - x0) / (x1 - x0) * (right - left):.1f},{bottom - (y - y0) / (y1 - y0) * (bottom - top):.1f}"
        )

    marks = []
    for y in _ticks(y0, y1):
        height = place(x0, y).split(",")[1]
        marks.append(f'<line x1="{left}" x2="{right}" y1="{height}" y2="{height}" stroke="#dde2e7"/>')
        marks.append(f'<text x="{left - 6}" y="{height}" dy=".35em" text-anchor="end">{y:.4g}</text>')
    for x in _ticks(x0, x1, 1):
        marks.append(f'<text x="{place(x, y0).split(",")[0]}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    for number, (name, points) in enumerate(series.items()):
        color, path = COLORS[number % len(COLORS)], " ".join(place(*point) for point in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        x, y = place(*points[-1]).split(",")
        marks.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>')
        marks.append(f'<text x="{left + 110 * number}" y="255" fill="{color}">&#9632; {_text(name)}</text>')
    heading = f'<text x="{left}" y="16" font-weight="600">{_text(title)}</text>'
    style = 'font-family="system-ui, sans-serif" font-size="12" fill="#1c2330"'
    return f'<svg viewBox="0 0 500 260" width="500" height="260" {style}>{heading}{"".join(marks)}</svg>'


def _ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Return at most six round numbers between two others, `least` or more apart."""
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = max(next(factor * power for factor in (1, 2, 5, 10) if (high - low) <= 5 * factor * power), least)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _class_table(classes: Sequence[ClassResult]) -> str:
    seen = [result for result in classes if result.images]
    worst = sorted(seen, key=lambda result: result.accuracy)[:TABLE_CLASSES]
    lines = []
    for result in worst:
        taken = ", ".join(f"{name} ({count})" for name, count in result.confusions[:3])
        bar = f'<span class="bar"><i style="width:{result.accuracy:.0f}%"></i></span>'
        cells = f'<td class="n">{result.images}</td><td class="n">{result.right}</td>'
        cells += f'<td class="n">{result.accuracy:.1f} %</td><td>{bar}</td><td>{_text(taken)}</td>'
        lines.append(f"<tr><td>{_text(result.name)}</td>{cells}</tr>")
    note = f" The {len(worst)} worst of {len(seen)}." if len(worst) < len(seen) else ""
    head = '<tr><th>class</th><th class="n">images</th><th class="n">right</th><th class="n">accuracy</th><th></th>'
    return (
        f'<h2>Classes</h2><p class="note">Accuracy is the share of a class\'s images that were right; the worst first.'
        f'{note}</p><div class="scroll"><table class="list" id="classes"><thead>{head}<th>taken for</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _confusions(rows: Sequence[Prediction], classes: Sequence[ClassResult]) -> str:
    if len(classes) > MATRIX_CLASSES:
        pairs = [(count, result.name, other) for result in classes for other, count in result.confusions]
        most = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:MATRIX_CLASSES]
        lines = "".join(f'<tr><td>{_text(a)}</td><td>{_text(b)}</td><td class="n">{n}</td></tr>' for n, a, b in most)
        head = '<tr><th>class</th><th>taken for</th><th class="n">images</th></tr>'
        return f'<h2>Most frequent confusions</h2><table class="list" id="confusions">{head}{lines}</table>'
    names = [result.name for result in classes]
    lines = []
    for name, counts in zip(names, confusion_matrix(rows, names), strict=True):
        total, cells = max(sum(counts), 1), []
        for other, count in zip(names, counts, strict=True):
            color = "11, 110, 153" if name == other else "209, 88, 43"
            tip = _text(f"{name} taken for {other}: {count}")
            text = "; color: white" if count > 0.4 * total else ""
            shade = f' style="background: rgba({color}, {(count / total) ** 0.5:.2f}){text}"' if count else ""
            cells.append(f'<td title="{tip}"{shade}>{count or ""}</td>')
        lines.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    kind = "matrix short" if max(map(len, names)) <= 3 else "matrix"
    return (
        '<h2>Confusion matrix</h2><p class="note">A row holds the images of one class, a column those that were taken '
        'for one. Blue is right, red is wrong, and deeper for a larger share of the row.</p><div class="scroll">'
        f'<table class="{kind}" id="confusions"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _mistakes(rows: Sequence[Prediction], picture: Callable[[int], Image.Image] | None) -> str:
    mistakes = certain_mistakes(rows)
    if not mistakes:
        return "<h2>Mistakes</h2><p>None.</p>"
    figures = []
    for row in mistakes:
        said = f"said <b>{_text(row.prediction)}</b> ({100 * row.probability:.1f} %)"
        truth = f"is <b>{_text(row.label)}</b> ({100 * row.label_probability:.1f} %)"
        name = _text(row.file or f"image {row.index}")
        figures.append(
            f"<figure>{_thumbnail(picture, row.index)}<figcaption>{said}<br>{truth}<br>{name}</figcaption></figure>"
        )
    wrong = sum(row.prediction != row.label for row in rows)
    return (
        f'<h2>Mistakes</h2><p class="note">The {len(mistakes)} of {wrong} that the model was surest of. Look here '
        f'for wrong labels first.</p><div class="grid" id="mistakes">{"".join(figures)}</div>'
    )


def _thumbnail(picture: Callable[[int], Image.Image] | None, index: int) -> str:
    if picture is None:
        return ""
    image, file = picture(index).convert("RGB"), io.BytesIO()
    image.thumbnail((256, 256))
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(file, kind, quality=80)
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}">'
