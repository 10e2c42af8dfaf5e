"""The law of sprouts: which parts a picture has, which words a caption has, which answer is exact.

A sprout is a plant in a pot with a face on a plain ground.  Each part is drawn evenly from its values, independently of
the others, so that the law p of pictures is known exactly.  A caption names a random half of the parts; what it leaves
open is what an alignment may move.

A picture is cheerful if its mouth is (`CHEERFUL`): 6 of 11, so p(cheerful) = 6/11 where the caption is silent about it.
The law that the reward r = 1[cheerful] tilts p to is known too:

    p*(picture | caption) ∝ p(picture | caption) exp(r/β),
    p*(cheerful | caption) = q e^{1/β} / (q e^{1/β} + 1 − q),   q = p(cheerful | caption)                     (1)

Given that it is cheerful or not, nothing changes: every other part keeps its law, the mouths keep theirs among
themselves.  At β = 1/2 and q = 6/11, (1) is .90.

Some pairs of plant and pot (`HELD_OUT`) are never drawn for training: captions that name both ask whether words were
learned, or pictures.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

# part -> {word in captions: what the artwork calls it, or its colour}
VALUES: dict[str, dict[str, str]] = {
    "plant": {
        "sprout": "sprout", "seedling": "seedling", "cactus": "cactus", "ball": "ball", "succulent": "succulent",
        "bush": "bush", "vine": "tall", "flower": "flower", "tulip": "tulip", "palm": "palm", "grass": "grass",
        "buds": "buds",
    },
    "pot": {
        "tapered": "taper", "square": "cylinder", "bowl": "bowl", "tub": "tub", "round": "round", "bag": "bag",
        "rimmed": "rim",
    },
    "colour": {
        "blue": "#7dd3fc", "lavender": "#c4b5fd", "pink": "#f0abfc", "red": "#fca5a5", "orange": "#fdba74",
        "yellow": "#fcd34d", "lime": "#bef264", "white": "#e2e8f0",
    },
    "leaf": {"green": "#22c55e", "turquoise": "#2dd4bf", "lime": "#a3e635"},
    "eyes": {
        "plain": "round", "dotted": "dots", "big": "bigPupils", "sidelong": "sideeye", "happy": "happy",
        "closed": "closedLine", "winking": "wink", "sleepy": "sleepy", "wide": "wide", "narrow": "close",
        "angry": "angry",
    },
    "mouth": {
        "smile": "smile", "little smile": "tinySmile", "grin": "grin", "cat mouth": "catMouth", "tongue": "tongue",
        "laugh": "open", "gasp": "ooh", "line": "line", "frown": "frown", "wavy mouth": "wavy", "tooth": "tooth",
    },
    "ground": {
        "sky": "#0369a1", "navy": "#1e293b", "violet": "#6d28d9", "magenta": "#a21caf", "crimson": "#be123c",
        "rust": "#c2410c", "forest": "#047857", "teal": "#0f766e",
    },
}  # fmt: skip
PARTS = tuple(VALUES)
WORDS = {part: tuple(values) for part, values in VALUES.items()}
SIZES = {part: len(values) for part, values in VALUES.items()}
CHEERFUL = ("smile", "little smile", "grin", "cat mouth", "tongue", "laugh")
HELD_OUT = (("cactus", "bag"), ("tulip", "round"), ("palm", "bowl"), ("bush", "rimmed"), ("flower", "tub"))
NAMED = 0.5  # share of parts that a caption names

_COLUMN = {part: i for i, part in enumerate(PARTS)}
_CHEERFUL = np.isin(WORDS["mouth"], CHEERFUL)
_PAIRS = np.array([[WORDS["plant"].index(plant), WORDS["pot"].index(pot)] for plant, pot in HELD_OUT])


def draw_parts(rng: np.random.Generator, n: int) -> np.ndarray:
    """n pictures' parts `[n, 7]`, columns as in `PARTS`, values as indices into `WORDS`; no held-out pair among them."""
    parts = np.empty((0, len(PARTS)), np.int32)
    while len(parts) < n:
        more = np.stack([rng.integers(size, size=n) for size in SIZES.values()], 1).astype(np.int32)
        parts = np.concatenate([parts, more[~held_out(more)]])
    return parts[:n]


def held_out(parts: np.ndarray) -> np.ndarray:
    """Which of `parts [n, 7]` have a pair of plant and pot that is never trained on, `[n]`."""
    pairs = parts[:, [_COLUMN["plant"], _COLUMN["pot"]]]
    return (pairs[:, None] == _PAIRS).all(-1).any(-1)


def column(parts: np.ndarray, part: str) -> np.ndarray:
    """One part of `parts [n, 7]`, `[n]`."""
    return parts[:, _COLUMN[part]]


def cheerful(parts: np.ndarray) -> np.ndarray:
    """Whether each of `parts [n, 7]` is, `[n]`."""
    return _CHEERFUL[column(parts, "mouth")]


def with_other_mouth(rng: np.random.Generator, parts: np.ndarray) -> np.ndarray:
    """The same pictures with another mouth, even among all others: exact counterfactuals."""
    other = parts.copy()
    size = SIZES["mouth"]
    other[:, _COLUMN["mouth"]] = (column(parts, "mouth") + rng.integers(1, size, size=len(parts))) % size
    return other


def tilted(q: float, beta: float) -> float:
    """p*(cheerful) by equation (1).

    >>> round(tilted(6 / 11, beta=0.5), 3)
    0.899
    """
    return q * math.exp(1 / beta) / (q * math.exp(1 / beta) + 1 - q)


# ------------------------------------------------------------------------------------------ captions


def caption(parts: Sequence[int] | np.ndarray, named: Sequence[str]) -> str:
    """A sentence that names these parts of one picture, and nothing else.

    >>> caption([2, 5, 5, 0, 0, 8, 7], ("plant", "pot", "colour", "ground"))
    'a cactus in a yellow bag pot on teal'
    >>> caption([2, 5, 5, 0, 10, 8, 7], ("eyes", "mouth"))
    'a plant in a pot with angry eyes and a frown'
    """
    word = {part: WORDS[part][value] if part in named else "" for part, value in zip(PARTS, parts, strict=True)}
    article = "an" if word["colour"].startswith("o") else "a"
    of = lambda *names: " ".join([word[name] for name in names if word[name]])
    sentence = " ".join(filter(None, ["a", of("leaf", "plant") or "plant" if word["plant"] else of("leaf") + " plant"]))
    sentence = " ".join(sentence.split()) + " " + " ".join(filter(None, [f"in {article}", of("colour", "pot"), "pot"]))
    face = [f"{word['eyes']} eyes"] * bool(word["eyes"]) + [f"a {word['mouth']}"] * bool(word["mouth"])
    if face:
        sentence += " with " + " and ".join(face)
    return sentence + (f" on {word['ground']}" if word["ground"] else "")


def draw_named(rng: np.random.Generator, n: int, never: Sequence[str] = ()) -> np.ndarray:
    """Which parts captions name, bool `[n, 7]`: each with probability `NAMED`, those in `never` not at all."""
    named = rng.random((n, len(PARTS))) < NAMED
    named[:, [_COLUMN[part] for part in never]] = False
    return named


def captions(parts: np.ndarray, named: np.ndarray) -> list[str]:
    """`caption` of each row of `parts [n, 7]`, `named` bool `[n, 7]`."""
    return [
        caption(row, [part for part, said in zip(PARTS, which, strict=True) if said])
        for row, which in zip(parts, named, strict=True)
    ]


def asked(parts: np.ndarray, named: np.ndarray) -> np.ndarray:
    """What captions ask for, int32 `[n, 7]`: a part's value, or the number of its values where the caption is silent."""
    return np.where(named, parts, np.array(list(SIZES.values()))).astype(np.int32)


def read_caption(sentence: str) -> dict[str, int]:
    """The parts that a caption names: the inverse of `caption`, {part: index into `WORDS`}.

    >>> read_caption("a turquoise cactus in a lime pot with angry eyes and a little smile")
    {'plant': 2, 'colour': 6, 'leaf': 1, 'eyes': 10, 'mouth': 1}
    """
    plant, _, rest = sentence.partition(" in a")
    pot, _, rest = rest.partition(" pot")
    face, _, ground = rest.partition(" on ")
    eyes, _, mouth = face.removeprefix(" with ").partition(" and a ") if " eyes" in face else ("", "", face[len(" with a ") :])
    where = {
        "plant": plant, "leaf": plant, "pot": pot, "colour": pot, "eyes": eyes.removesuffix(" eyes"), "mouth": mouth,
        "ground": ground,
    }  # fmt: skip
    found = {}
    for part in PARTS:
        whole = where[part] if part in ("mouth", "eyes", "ground") else None
        words = [whole] if whole is not None else where[part].split()
        for word in words:
            if word in WORDS[part]:
                found[part] = WORDS[part].index(word)
    return found


def vocabulary() -> list[str]:
    """Every word of every caption."""
    words = {"a", "an", "in", "on", "with", "and", "plant", "pot", "eyes"}
    words |= {word for values in WORDS.values() for value in values for word in value.split()}
    return sorted(words)


def shares(parts: np.ndarray) -> Mapping[str, np.ndarray]:
    """How often each value of each part occurs in `parts [n, 7]`, {part: [size]}, summing to one."""
    return {part: np.bincount(column(parts, part), minlength=size) / len(parts) for part, size in SIZES.items()}
