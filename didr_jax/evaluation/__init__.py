"""Metrics of sets of pictures, each under a named protocol: FID, patch-FID, KID, CMMD, CLIP score, diversity, win rate.

    from didr_jax.evaluation.collect import statistics_of
    from didr_jax.evaluation.frechet import fid
    from didr_jax.evaluation.inception_features import inception

    network = inception("inception.safetensors", "dmd2")
    real, generated = (statistics_of(network, folder) for folder in ("coco", "samples"))
    print(fid(real, generated, "dmd2"))

docs/metrics.md lists the protocols and the files.  Nothing here needs torch.
"""
