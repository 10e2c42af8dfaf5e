"""Metrics of sets of pictures, each under a named protocol: FID, patch-FID, KID, CMMD, CLIP score, diversity, win rate.

    network = inception("inception.safetensors", "dmd2")
    real, generated = (statistics_of(network, folder) for folder in ("coco", "samples"))
    print(fid(real, generated, "dmd2"), kid(real, generated, "dmd2"), sep="\\n")

docs/metrics.md lists the protocols and the files.  Nothing here needs torch.
"""

from didr_jax.evaluation.clip_features import clip_pictures
from didr_jax.evaluation.clip_score import ClipScorer
from didr_jax.evaluation.cmmd import cmmd
from didr_jax.evaluation.collect import Options, statistics_of
from didr_jax.evaluation.diversity import in_prompt, vendi
from didr_jax.evaluation.frechet import fid
from didr_jax.evaluation.inception_features import inception
from didr_jax.evaluation.kid import kid
from didr_jax.evaluation.protocols import CLIP_SCORE, CMMD, DIVERSITY, FID, Measured
from didr_jax.evaluation.statistics import Statistics, read_statistics, write_statistics
from didr_jax.evaluation.win_rate import win_rate

__all__ = [
    "CLIP_SCORE", "CMMD", "DIVERSITY", "FID", "ClipScorer", "Measured", "Options", "Statistics", "clip_pictures", "cmmd",
    "fid", "in_prompt", "inception", "kid", "read_statistics", "statistics_of", "vendi", "win_rate", "write_statistics",
]  # fmt: skip
