"""Architecture of a `UNet2DConditionModel`, read from diffusers' `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from didr_jax.models.config import building, check_config, per_block, require_few
from didr_jax.types import InputError

# Values that other members of the class use and this port does not do.
FIXED = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# upcast_attention: logits and softmax are float32 here in any case.
SIZES = (
    "in_channels", "out_channels", "block_out_channels", "norm_num_groups", "cross_attention_dim", "attention_head_dim",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim",
)  # fmt: skip
FREE = ("sample_size", "upcast_attention", "addition_embed_type_num_heads")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Architecture; tuples have one entry a resolution level, finest first.

    Attributes:
      attention: whether the level has transformers.
      layers: residual blocks of a level on the way down (one more on the way up).
      transformer_layers: blocks of each of the level's transformers.
      heads: attention heads (`attention_head_dim` in config.json, a misnomer of diffusers').
      context_dim: channels of the text embedding.
      linear_projection: only says how the file stores `proj_in` and `proj_out`.
      added_time_dim: channels a number of `time_ids`; None: no SDXL text-time embedding.
      added_dim: channels of pooled text plus all `time_ids`.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: tuple[int, ...]
    transformer_layers: tuple[int, ...]
    heads: tuple[int, ...]
    context_dim: int
    linear_projection: bool
    groups: int
    eps: float
    cos_first: bool
    freq_shift: float
    added_time_dim: int | None
    added_dim: int | None

    @classmethod
    @building("UNet2DConditionModel")
    def from_json(cls, raw: Mapping[str, Any]) -> "UNetConfig":
        """Reads diffusers' `config.json`; keys that are absent have diffusers' defaults.

        Raises:
          InputError: naming every value that this port does not do, and every unknown key.
        """
        defaults = {
            "in_channels": 4, "out_channels": 4, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "norm_num_groups": 32,
            "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "attention_head_dim": 8,
            "use_linear_projection": False, "addition_time_embed_dim": None,
            "projection_class_embeddings_input_dim": None,
        }  # fmt: skip
        check_config(
            raw,
            "UNet2DConditionModel",
            used=defaults,
            fixed=FIXED,
            free=FREE,
            sizes=SIZES,
            depths=("layers_per_block", "transformer_layers_per_block"),
            numbers=("freq_shift", "norm_eps"),
            flags=("flip_sin_to_cos", "use_linear_projection"),
        )
        r = {**defaults, **raw}
        channels, n = tuple(r["block_out_channels"]), len(r["block_out_channels"])
        down, up = r["down_block_types"], r["up_block_types"]
        attention = tuple(kind == "CrossAttnDownBlock2D" for kind in down)
        mirrored = [f"{'CrossAttn' * a}UpBlock2D" for a in reversed(attention)]
        if len(down) != n or set(down) - {"CrossAttnDownBlock2D", "DownBlock2D"} or list(up) != mirrored:
            raise InputError(
                f"UNet2DConditionModel config.json: {n} levels of (CrossAttn)DownBlock2D mirrored by "
                f"(CrossAttn)UpBlock2D are needed, not {list(down)} and {list(up)}"
            )
        contexts = set(per_block(r["cross_attention_dim"], n, "cross_attention_dim"))
        layers = per_block(r["transformer_layers_per_block"], n, "transformer_layers_per_block")
        if len(contexts) > 1 or any(isinstance(i, (list, tuple)) for i in layers):
            raise InputError(
                "UNet2DConditionModel config.json: cross_attention_dim must be one number and "
                "transformer_layers_per_block one for each level"
            )
        heads = per_block(r["attention_head_dim"], n, "attention_head_dim")
        blocks = zip(per_block(r["layers_per_block"], n, "layers_per_block"), layers, attention, strict=True)
        require_few(sum(2 * (residual + 1) * (t if attends else 1) for residual, t, attends in blocks), "UNet2DConditionModel")
        text_time = r.get("addition_embed_type") == "text_time"
        return cls(
            in_channels=r["in_channels"],
            out_channels=r["out_channels"],
            channels=channels,
            attention=attention,
            layers=per_block(r["layers_per_block"], n, "layers_per_block"),
            transformer_layers=layers,
            heads=heads,
            context_dim=contexts.pop(),
            linear_projection=r["use_linear_projection"],
            groups=r["norm_num_groups"],
            eps=r["norm_eps"],
            cos_first=r["flip_sin_to_cos"],
            freq_shift=r["freq_shift"],
            added_time_dim=r["addition_time_embed_dim"] if text_time else None,
            added_dim=r["projection_class_embeddings_input_dim"] if text_time else None,
        )
