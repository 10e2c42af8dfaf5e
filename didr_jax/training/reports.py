"""Tables and pictures that a run leaves in its workdir."""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from didr_jax.training.metrics import RunLog, read_metrics
from didr_jax.training.workdir import write_json


def write_summary(workdir: str, rows: dict[str, dict[str, float]], log: RunLog) -> None:
    """`summary.json` (a row per model, a column per figure), and the same table on the screen."""
    write_json(os.path.join(workdir, "summary.json"), rows)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows))
    log.say(" " * width + "".join(f"  {name:>{max(len(name), 7)}}" for name in columns))
    for label, row in rows.items():
        cells = (f"{row[name]:.4g}" if name in row else "–" for name in columns)
        log.say(f"{label:<{width}}" + "".join(f"  {cell:>{max(len(n), 7)}}" for n, cell in zip(columns, cells)))


def image_grid(path: str, images: np.ndarray, columns: int, scale: int = 4) -> None:
    """A PNG of grey images `[n, h, w]` in [0, 1], `columns` to a row, each pixel `scale` wide."""
    n, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (h + 1) + 1, columns * (w + 1) + 1))
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + 1) + 1, (i % columns) * (w + 1) + 1
        canvas[top : top + h, left : left + w] = 1 - np.clip(image, 0, 1)
    plt.imsave(path, np.kron(canvas, np.ones((scale, scale))), cmap="gray", vmin=0, vmax=1)


def curves(workdir: str) -> None:
    """`curves_<stage>.png` for each stage in metrics.jsonl: every logged figure against the step."""
    records = read_metrics(workdir)
    for stage in dict.fromkeys(record["stage"] for record in records):
        lines = [record for record in records if record["stage"] == stage]
        names = [n for n in lines[0] if n not in ("stage", "step", "images_seen", "images_per_second", "skipped")]
        figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 2.6), squeeze=False)
        for axis, name in zip(axes[0], names):
            axis.plot([line["step"] for line in lines], [line[name] for line in lines], lw=1.2)
            axis.set_title(name, fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=7)
        figure.suptitle(stage, fontsize=10)
        figure.tight_layout()
        figure.savefig(os.path.join(workdir, f"curves_{stage}.png"), dpi=100)
        plt.close(figure)


def scatter(path: str, clouds: dict[str, np.ndarray]) -> None:
    """A PNG with a panel per cloud of points `[n, 2]`, on common axes."""
    figure, axes = plt.subplots(1, len(clouds), figsize=(3 * len(clouds), 3.2), sharex=True, sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], clouds.items()):
        axis.scatter(points[:, 0], points[:, 1], s=2, alpha=0.4, lw=0)
        axis.set_title(title, fontsize=9)
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
