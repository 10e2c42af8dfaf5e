"""Pictures of sprouts against the truth: which parts they show, whether those were asked for, what moved that should not.

A judge, trained on pictures that no other network has seen, reads the parts off each picture.  Then, with n pictures,

    named       share of named parts that the picture has
    named_new   the same for captions with a pair of plant and pot that no training saw
    cheerful    share of cheerful faces among captions that do not name a mouth
    kl_others   Σ KL(shares of a part ‖ drawn evenly) in nats over the parts but the mouth, each where it is not named
    kl_smiles   KL of the cheerful mouths among themselves, where no mouth is named
    frechet     Fréchet distance of the judge's features to the data of the same share of cheerful faces

In a tilted law by a reward on cheerfulness (`parts`, equation 1) `cheerful` is p*(cheerful) and the others are as before.
Of n draws from even shares of a part with s values, KL has the expectation (s − 1)/2n: what `sampling_error` sums.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from didr_jax.distances import frechet_distance, moments
from didr_jax.json_files import read_object
from didr_jax.models.part_judge import PartJudge
from didr_jax.recipes.sprouts import parts
from didr_jax.recipes.sprouts.album import SIDE, to_float
from didr_jax.recipes.sprouts.knobs import SHIPPED
from didr_jax.training.evaluation import over_rows
from didr_jax.types import PyTree, Weights
from didr_jax.weights.engine import weights_of
from didr_jax.weights.files import read_tensors
from didr_jax.weights.rules import Rule

TABLE = [Rule("(.*)", "{}")]  # a judge's tensors have its own names
NETWORK = PartJudge(parts.SIZES)
OTHERS = tuple(part for part in parts.PARTS if part != "mouth")
NAMES = {True: "cheerful", False: "not"}  # of the two kinds of data in features.json
Gaussian = tuple[np.ndarray, np.ndarray]  # mean and covariance of features


def seen(params: PyTree, images: np.ndarray, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Parts `[n, 7]` and features `[n, d]` of pictures, uint8 `[n, 64, 64, 3]`."""
    return over_rows(_look, params, images, size)


@jax.jit
def _look(params, images):
    logits, features = NETWORK.apply({"params": params}, to_float(images))
    return jnp.stack([jnp.argmax(logits[part], -1) for part in parts.PARTS], 1), features


def mixed(groups: Mapping[bool, Gaussian], share: float) -> Gaussian:
    """Mean and covariance of data of which a `share` is cheerful, from those of either kind."""
    (mean_1, cov_1), (mean_0, cov_0) = groups[True], groups[False]
    apart = mean_1 - mean_0
    mean = share * mean_1 + (1 - share) * mean_0
    return mean, share * cov_1 + (1 - share) * cov_0 + share * (1 - share) * np.outer(apart, apart)


def kl_to_even(values: np.ndarray, size: int) -> float:
    """KL in nats of the shares of `values [n]` in {0 … size − 1} from 1/size each; nan without any."""
    if not len(values):
        return np.nan
    share = np.bincount(values, minlength=size) / len(values)
    return float(np.sum(share * np.log(np.maximum(share, 1e-300) * size)))


def verdict(found: np.ndarray, features: np.ndarray, prompts: Sequence[str], groups: Mapping[bool, Gaussian]) -> dict[str, float]:
    """The figures above.

    Args:
      found: parts `[n, 7]` and `features [n, d]`, as `seen` gives them.
      prompts: n captions.
      groups: features of data with and without a cheerful face.
    """
    asked = [parts.read_caption(prompt) for prompt in prompts]
    named = np.array([[part in which for part in parts.PARTS] for which in asked])
    right = np.array([[which.get(part, -1) for part in parts.PARTS] for which in asked]) == found
    new = np.array([_is_new(which) for which in asked])
    open_mouth = ~named[:, parts.PARTS.index("mouth")]
    cheerful = parts.cheerful(found)
    smiles = np.searchsorted(_SMILES, parts.column(found, "mouth")[open_mouth & cheerful])
    others = [
        kl_to_even(found[~named[:, i], i], parts.SIZES[part]) for i, part in enumerate(parts.PARTS) if part in OTHERS
    ]  # fmt: skip
    return {
        "named": _mean(right[named]),
        "named_new": _mean(right[new][named[new]]),
        "cheerful": _mean(cheerful[open_mouth]),
        "kl_others": float(np.sum(others)),
        "kl_smiles": kl_to_even(smiles, len(_SMILES)),
        "frechet": frechet_distance(moments(features), mixed(groups, float(np.mean(cheerful)))),
    }


_SMILES = np.flatnonzero(np.isin(parts.WORDS["mouth"], parts.CHEERFUL))


def _is_new(asked: Mapping[str, int]) -> bool:
    if not {"plant", "pot"} <= asked.keys():
        return False
    return (parts.WORDS["plant"][asked["plant"]], parts.WORDS["pot"][asked["pot"]]) in parts.HELD_OUT


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def sampling_error(prompts: Sequence[str]) -> float:
    """What `kl_others` is expected to be for pictures whose parts are drawn evenly, one for each of `prompts`."""
    asked = [parts.read_caption(prompt) for prompt in prompts]
    free = lambda part: sum(part not in which for which in asked)
    return sum((parts.SIZES[part] - 1) / (2 * free(part)) for part in OTHERS if free(part))


# ------------------------------------------------------------------------------------- a judge's files


def grouped(features: np.ndarray, cheerful: np.ndarray) -> dict[bool, Gaussian]:
    """Of data's features `[n, d]` with and without a cheerful face, `cheerful [n]`."""
    return {kind: moments(features[cheerful == kind]) for kind in (True, False)}


def groups_as_json(groups: Mapping[bool, Gaussian]) -> dict[str, list]:
    """What `read_judge` reads."""
    return {NAMES[kind]: [part.tolist() for part in group] for kind, group in groups.items()}


def read_judge(folder: Path) -> tuple[Weights, dict[bool, Gaussian]]:
    """A judge's weights, and its features of data, from `judge.safetensors` and `features.json`."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    path = folder / "judge.safetensors"
    raw = read_object(folder / "features.json")
    groups = {kind: (np.asarray(raw[name][0]), np.asarray(raw[name][1])) for kind, name in NAMES.items()}
    return weights_of(lambda: read_tensors(path), TABLE, shapes, where=str(path)), groups


@functools.cache
def _opened():
    weights, groups = read_judge(SHIPPED / "judge")
    return weights.cast(jnp.float32).load(), groups


def judge(images: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    """`config.eval.judge` of `configs/sprouts.py`: figures of pictures uint8 `[n, 64, 64, 3]`, by the judge that ships."""
    params, groups = _opened()
    return verdict(*seen(params, images), prompts, groups)
