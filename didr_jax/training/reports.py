"""Tables and pictures that a run leaves in its workdir."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from didr_jax.training.metrics import RunLog
from didr_jax.whole_files import whole_file, write_json


def write_summary(workdir: str, rows: dict[str, dict[str, float]], log: RunLog) -> None:
    """`summary.json` (a row per model, a column per figure), and the same table on the screen and in the trackers."""
    write_json(os.path.join(workdir, "summary.json"), rows)
    log.summarise(rows)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows))
    log.say(" " * width + "".join(f"  {name:>{max(len(name), 7)}}" for name in columns))
    for label, row in rows.items():
        cells = (f"{row[name]:.4g}" if name in row else "–" for name in columns)
        log.say(f"{label:<{width}}" + "".join(f"  {cell:>{max(len(n), 7)}}" for n, cell in zip(columns, cells, strict=True)))


def write_agreements(workdir: str, found: Mapping[str, Any]) -> None:
    """`tac.json`, which `report.html` tells: `{reward: Agreement}` of `rewards.tac`."""
    write_json(os.path.join(workdir, "tac.json"), {name: dataclasses.asdict(each) for name, each in found.items()})


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8, rounded as diffusers does."""
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def picture_grid(images: np.ndarray, columns: int, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Images `[n, h, w]` or `[n, h, w, 3]` uint8 as one picture, `columns` to a row, white between them.

    `gap`: pixels between images; `scale`: side of the square that each pixel becomes, gaps included.
    """
    n, h, w = images.shape[:3]
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, *images.shape[3:]), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas.repeat(scale, 0).repeat(scale, 1)


def save_picture(path: str, picture: np.ndarray, format: str = "PNG", **how: Any) -> None:
    """`picture [h, w]` or `[h, w, 3]`, uint8, as a file that is whole or not there; `how`: Pillow's options of the format."""
    with whole_file(path, binary=True) as file:
        Image.fromarray(picture).save(file, format, **how)


def _save_figure(path: str, figure) -> None:
    try:
        with whole_file(path, binary=True) as file:
            figure.savefig(file, format="png", dpi=100)
    finally:
        plt.close(figure)


def scatter(path: str, clouds: dict[str, np.ndarray]) -> None:
    """A PNG with a panel per cloud of points `[n, 2]`, on common axes."""
    figure, axes = plt.subplots(1, len(clouds), figsize=(3 * len(clouds), 3.2), sharex=True, sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], clouds.items(), strict=False):
        axis.scatter(points[:, 0], points[:, 1], s=2, alpha=0.4, lw=0)
        axis.set_title(title, fontsize=9)
        axis.set_aspect("equal")
    figure.tight_layout()
    _save_figure(path, figure)
