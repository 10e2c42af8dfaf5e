"""`report.html`: a run on one page that needs nothing else, neither a network nor a file beside it.

Everything is in the file: pictures as data, curves as SVG, style and script.  The page says so to the browser too
(Content-Security-Policy), so that nothing it held could ask for more.  Without the script all is still to be read.
"""

import os
import time
from collections.abc import Callable

import jinja2
import numpy as np
from PIL import Image

from didr_jax.config import flatten
from didr_jax.reporting import curves
from didr_jax.reporting.contents import Contents, read_workdir
from didr_jax.reporting.data_uri import data_uri
from didr_jax.reporting.pairs import FIRST, Pairs
from didr_jax.reporting.verdict import direction, standard_errors
from didr_jax.whole_files import whole_file

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "template")
PICTURES = {  # of the workdir, with what they show
    "reference.png": "the multi-step reference, from the same noise",
    "samples.png": "samples, as the recipe draws them",
    "reconstructions.png": "held-out pictures, each beside what the autoencoder makes of it",
}
SMALL = 64  # pixels, below which a picture is shown enlarged, its pixels as squares
SHARE = 0.02  # of a run's time that may go into drawing its report while it trains


def write_report(workdir: str) -> str:
    """Draws `report.html` in the workdir from what it holds, finished or not; the path.

    Raises:
      InputError: no run has begun there.
      CannotSave: the disk is full.
    """
    path = os.path.join(workdir, "report.html")
    page = render(read_workdir(workdir))
    with whole_file(path) as file:
        file.write(page)
    return path


class Rewriting:
    """Draws a report again and again while a run trains, as long as that is cheap: at most `SHARE` of its time.

    Args:
      workdir: of the run.
      say: prints a line for the user.
      now: the clock, seconds.
    """

    def __init__(self, workdir: str, say: Callable[[str], None], now: Callable[[], float] = time.monotonic):
        self._workdir, self._say, self._now = workdir, say, now
        self._next = now() + 2.0 / SHARE  # as if one had been drawn in two seconds

    def __call__(self, must: bool) -> None:
        """Draws it if that is cheap by now, or if it must."""
        begun = self._now()
        if begun < self._next and not must:
            return
        try:
            write_report(self._workdir)
        except Exception as error:  # a page is not worth a run
            self._say(f"report.html was not drawn ({type(error).__name__}: {error}); training goes on")
        self._next = self._now() + (self._now() - begun) / SHARE


def render(held: Contents) -> str:
    """The page as HTML."""
    columns = list(dict.fromkeys(name for row in held.summary.values() for name in row))
    return template("report.html").render(
        held=held,
        title=f"{held.config.get('recipe', '')} {held.objective}".strip(),
        name=os.path.basename(os.path.abspath(held.workdir)),
        drawn=now(),
        verdict=held.verdict(),
        warnings=held.warnings(),
        columns=columns,
        way={column: direction(column) for column in columns},
        errors=_errors(held),
        groups=_groups(held.pairs) if held.pairs is not None else [],
        histogram=_histogram(held.pairs),
        sliders=_sliders(held),
        pictures=_pictures(held),
        drawings={stage: [svg for _, svg in found] for stage, found in curves.drawings(held.records).items()},
        commands=held.commands(),
        flags=[flag for flag in held.about.get("flags", []) if flag.startswith("--config.")],
        settings=flatten(held.config),
    )


def now() -> str:
    """For the page's head."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def template(name: str) -> jinja2.Template:
    """A page's, from the folder; what it is given is text unless it is marked safe."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value: f"{value:.4g}"
    return environment.get_template(name)


def _errors(held: Contents) -> dict[str, float]:
    """Standard errors of the reward, by row of the table."""
    before, after, _ = standard_errors(held.pairs)
    if held.rows is None:
        return {}
    return {label: error for label, error in zip(held.rows, (before, after), strict=True) if np.isfinite(error)}


def _groups(pairs: Pairs) -> list[dict]:
    """Of pairs of pictures: those that nobody chose, and the largest changes of all."""
    n = len(pairs.gain)
    known = bool(np.isfinite(pairs.gain).all())
    rows = [("Pairs", f"The first {min(n, FIRST)} of {n}, chosen by nobody" + ", largest gain first." * known, pairs.drawn())]
    if known and n > len(rows[0][2]):
        rows += [
            ("Largest gains", f"Of all {n} pairs.", pairs.extremes(1)),
            ("Largest losses", f"Of all {n} pairs: where training did harm, by the reward.", pairs.extremes(-1)),
        ]
    return [{"title": t, "about": about, "tiles": [_tile(pairs, i) for i in which]} for t, about, which in rows if len(which)]


def _tile(pairs: Pairs, i: int) -> dict:
    n, caption = int(pairs.which[i]), str(pairs.captions[i])
    return {
        "before": data_uri(pairs.before[i]),
        "after": data_uri(pairs.after[i]),
        "small": max(pairs.before.shape[1:3]) <= SMALL,
        "caption": caption or f"number {n}",
        "number": n,
        "gain": float(pairs.gain[n]),
        "rewards": (float(pairs.reward_before[n]), float(pairs.reward_after[n])),
    }


def _histogram(pairs: Pairs | None) -> str | None:
    """Of the reward before, after, and in the law that is aimed at."""
    if pairs is None or len(pairs.gain) < 50 or not np.isfinite(pairs.gain).all():
        return None
    sets: dict = {"before": (pairs.reward_before, None), "after": (pairs.reward_after, None)}
    if len(pairs.target):
        sets["target"] = pairs.target, pairs.target_weights
    return curves.histogram(sets, "reward", "rewards")


def _sliders(held: Contents) -> list[dict]:
    return [
        {"title": series, "frames": [{"step": step, "uri": _file(path)} for step, path in frames]}
        for series, frames in held.frames.items()
        if len(frames) > 1
    ]


def _pictures(held: Contents) -> list[dict]:
    """The other pictures of the workdir."""
    shown = ["before.png", "after.png"] if held.pairs is None or not len(held.pairs.which) else []
    told = {name: f"{name.removesuffix('.png')} training, the same noise in each" for name in shown} | PICTURES
    there = {name: alt for name, alt in told.items() if os.path.exists(os.path.join(held.workdir, name))}
    return [{"name": name, "alt": alt, "uri": _file(os.path.join(held.workdir, name))} for name, alt in there.items()]


def _file(path: str) -> str:
    with Image.open(path) as image:
        image.load()
        return data_uri(image)
