"""The same captions and noise through several trained generators, a strip for each, from the grids of their `progress/`.

    python benchmarks/strip.py --out=strip.png "before=runs/a/progress/000000_samples.png" "DIDR, β = ½=runs/a/progress/000100_samples.png" …

Each argument is a label and a grid, apart by the last "="; of each grid the first row of pictures is taken.
"""

import argparse

import checkout  # noqa: F401  (finds the packages)
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("strips", nargs="+", help="LABEL=GRID.png")
    parser.add_argument("--side", type=int, default=64, help="pixels of a picture in a grid, without the line between two")
    parser.add_argument("--out", default="strip.png")
    args = parser.parse_args()
    pairs = [strip.rsplit("=", 1) for strip in args.strips]
    rows = [np.asarray(Image.open(path).convert("RGB"))[: args.side] for _, path in pairs]
    plot, axes = plt.subplots(len(rows), 1, figsize=(11, 1.25 * len(rows)), squeeze=False)
    for axis, (label, _), row in zip(axes[:, 0], pairs, rows, strict=True):
        axis.imshow(row, interpolation="nearest")
        axis.set_title(label, fontsize=9, loc="left", pad=2)
        axis.axis("off")
    plot.tight_layout(pad=0.3)
    plot.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
