"""Statistics files: what a set of pictures is reduced to, as `.npz` in the usual spellings.

    mu, sigma                       pytorch-fid, clean-fid, guided-diffusion, EDM     mean and covariance (ddof 1)
    ref_mu, ref_sigma               other harnesses                                   the same
    features | feats | X            KID files (clean-fid: feats)                      features [n, d]

Beside them this package writes `count` and `protocol`.  Pickles are refused: opening one runs code.
"""

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

from didr_jax.evaluation.moments import Moments
from didr_jax.evaluation.protocols import Protocol
from didr_jax.types import InputError
from didr_jax.whole_files import whole_file

GAUSSIAN = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
FEATURES = ("features", "feats", "X")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one set of pictures.

    Attributes:
      mean, covariance: `[d]` and `[d, d]`, ddof 1; None if only features are known.
      features: `[n, d]`; None if only moments are known.
      count: number of pictures; None: the file does not say.
      protocol: name of the protocol; None: the file does not say.
    """

    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    features: np.ndarray | None = None
    count: int | None = None
    protocol: str | None = None

    @classmethod
    def of(cls, moments: Moments, protocol: Protocol) -> "Statistics":
        """Of moments measured under a protocol."""
        return cls(moments.mean, moments.covariance(), None, moments.count, protocol.name)

    def gaussian(self, ddof: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance.  Raises `InputError` if there are none with this ddof."""
        if self.features is not None:
            moments = Moments.of(self.features)
            return moments.mean, moments.covariance(ddof)
        if self.mean is None or self.covariance is None:
            raise InputError("statistics without means and covariances; give a file with mu and sigma, or features")
        if ddof == 1:
            return self.mean, self.covariance
        if self.count is None:
            raise InputError("statistics of an unknown number of pictures have ddof 1 only")
        return self.mean, self.covariance * (self.count - 1) / (self.count - ddof)

    def each(self, metric: str) -> np.ndarray:
        """The features.  Raises `InputError` if only their moments are known; `metric` is what wants them."""
        if self.features is None or not len(self.features):
            raise InputError(f"{metric} needs features, and these statistics hold moments only; measure with keep=True")
        return self.features


def check_same_protocol(row: Protocol, **sets: Statistics) -> tuple[str, ...]:
    """Notes on the sets' sizes, and on files that do not say their protocol.

    Raises:
      InputError: a set was measured under another protocol.
    """
    notes = []
    for name, s in sets.items():
        if s.protocol not in (None, row.name):
            raise InputError(f"the {name} statistics are of protocol {s.protocol!r}, not {row.name!r}; measure them again")
        size = "?" if s.count is None else s.count
        notes.append(f"{size} {name}" + ("" if s.protocol else " (of unstated protocol)"))
    return tuple(notes)


def read_statistics(path: str | os.PathLike) -> Statistics:
    """Reads an `.npz` in any of the usual spellings.

    Raises:
      InputError: another kind of file (pickles with the remedy), damaged, or nothing known in it.
    """
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        raise InputError(
            f"statistics: {path} is a pickle, which runs code when it is opened; convert it where you trust it: "
            "s = pickle.load(open(FILE, 'rb')); numpy.savez('stats.npz', mu=s['mean'], sigma=s['cov'])"
        )
    if not path.is_file():
        raise InputError(f"statistics: no such file: {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"statistics: {path} is no .npz; give one with mu and sigma, or features")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if name in _KNOWN}
            names = file.files
            count = int(found["count"]) if "count" in found else None
    except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged files
        raise InputError(f"statistics: {path} cannot be read without running code, or is damaged ({error})") from None
    if words := [name for name, array in found.items() if name != "protocol" and array.dtype.kind not in "fiu"]:
        raise InputError(f"statistics: {path} holds something else than numbers in {', '.join(words)}")
    mean, covariance = next(((found[m], found[c]) for m, c in GAUSSIAN if m in found and c in found), (None, None))
    features = next((found[name] for name in FEATURES if name in found), None)
    if mean is not None and covariance is not None:
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise InputError(f"statistics: {path} has mean {list(mean.shape)}, covariance {list(covariance.shape)}; [d], [d, d]")
    elif features is None:
        raise InputError(f"statistics: {path} holds {', '.join(names) or 'nothing'}; mu and sigma, or features are wanted")
    if features is not None and features.ndim != 2:
        raise InputError(f"statistics: {path} has features {list(features.shape)}, not [n, d]")
    if count is None and features is not None:
        count = len(features)
    protocol = str(found["protocol"]) if "protocol" in found else None
    return Statistics(mean, covariance, features, count, protocol or None)


_KNOWN = {"count", "protocol", *FEATURES, *(name for pair in GAUSSIAN for name in pair)}


def write_statistics(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes `mu` and `sigma`, `feats`, `count` and `protocol` as far as they are known; whole or not at all.

    pytorch-fid, clean-fid, torch-fidelity's users and guided-diffusion's evaluator read the result.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"statistics: {path} must end in .npz")
    mean, covariance = statistics.gaussian()
    values = {"mu": mean, "sigma": covariance, "feats": statistics.features,
              "count": statistics.count, "protocol": statistics.protocol}  # fmt: skip
    write_npz(path, {name: value for name, value in values.items() if value is not None})


def write_npz(path: Path, arrays: dict) -> None:
    """`numpy.savez`, whole or not at all; raises CannotSave."""
    with whole_file(path, binary=True) as file:
        np.savez(file, **arrays)
