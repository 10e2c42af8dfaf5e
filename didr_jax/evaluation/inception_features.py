"""Pooled features of FID's Inception under a named protocol."""

import functools
import os

import jax.numpy as jnp

from didr_jax.evaluation.collect import Network, network_input
from didr_jax.evaluation.protocols import FID, InceptionProtocol, named
from didr_jax.models.inception import WIDTH, Inception
from didr_jax.types import Array, PyTree
from didr_jax.weights.inception import load_inception


def inception_features(pixels: str, params: PyTree, pictures: Array) -> Array:
    """Prepared pictures `[b, 299, 299, 3]`, uint8 or float in [0, 255] -> features `[b, 2048]`; `pixels` as in `PIXELS`."""
    return jnp.asarray(Inception().apply({"params": params}, network_input(pixels, pictures)))


def inception(path: str | os.PathLike | None, protocol: str | InceptionProtocol) -> Network:
    """FID's network from a file of `weights.inception`, under a row of `protocols.FID`."""
    row = named(FID, protocol)
    return Network(row, load_inception(path), functools.partial(inception_features, row.pixels), WIDTH)
