"""Z-Image's architecture, read from diffusers' `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from didr_jax.models.config import building, check_config
from didr_jax.types import InputError

TIME_WIDTH = 256  # of the sinusoid, and at most of the embedding that modulates the blocks

# Values that other members of the class use and this port does not do.
FIXED = {"all_f_patch_size": ([1], (1,)), "qk_norm": (True,), "siglip_feat_dim": (None,)}


@dataclasses.dataclass(frozen=True)
class ZImageConfig:
    """Sizes of a Z-Image transformer, under the names of its `config.json`; defaults are the 6B model's."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, int, int] = (32, 48, 48)
    axes_lens: tuple[int, int, int] = (1024, 512, 512)
    patch_size: int = 2

    @property
    def hidden(self) -> int:
        return int(self.dim / 3 * 8)

    @property
    def time_dim(self) -> int:
        return min(self.dim, TIME_WIDTH)

    @classmethod
    @building("ZImageTransformer2DModel")
    def from_json(cls, raw: Mapping[str, Any]) -> "ZImageConfig":
        """Reads the contents of a transformer folder's `config.json`; absent keys have diffusers' defaults.

        Raises:
          InputError: naming every value that this port does not do, and every unknown key.
        """
        used = [field.name for field in dataclasses.fields(cls) if field.name != "patch_size"]
        check_config(
            raw,
            "ZImageTransformer2DModel",
            used=[*used, "all_patch_size", "n_kv_heads"],
            fixed=FIXED,
            sizes=("in_channels", "dim", "n_heads", "n_kv_heads", "cap_feat_dim", "axes_dims", "axes_lens", "all_patch_size"),
            depths=("n_layers", "n_refiner_layers"),
            numbers=("norm_eps", "rope_theta", "t_scale"),
        )
        values: dict[str, Any] = {key: tuple(raw[key]) if key.startswith("axes") else raw[key] for key in used if key in raw}
        patch_size, *more = raw.get("all_patch_size", (2,))
        config = cls(**values, patch_size=patch_size)
        head_dim = config.dim / config.n_heads
        if more or raw.get("n_kv_heads", config.n_heads) != config.n_heads or sum(config.axes_dims) != head_dim:
            raise InputError(
                "ZImageTransformer2DModel config.json: one all_patch_size, n_kv_heads equal to n_heads, and axes_dims "
                f"adding up to dim / n_heads = {head_dim:g} are needed"
            )
        return config
