"""Names of ZImageTransformer2DModel's tensors."""

from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.weights.rules import Rule, layer, norm


def _block(stage: str) -> list[Rule]:
    torch, flax = f"{stage}.(?P<layer>\\d+)", stage
    return [
        *layer(f"{torch}.attention.(to_q|to_k|to_v)", f"{flax}/attention/{{}}"),
        *layer(f"{torch}.attention.to_out.0", f"{flax}/attention/to_out"),
        *norm(f"{torch}.attention.(norm_q|norm_k)", f"{flax}/attention/{{}}"),
        *layer(f"{torch}.feed_forward.(w1|w2|w3)", f"{flax}/feed_forward/{{}}"),
        *norm(f"{torch}.(attention_norm1|attention_norm2|ffn_norm1|ffn_norm2)", f"{flax}/{{}}"),
        *layer(f"{torch}.adaLN_modulation.0", f"{flax}/modulation"),
    ]


def zimage_table(config: ZImageConfig) -> list[Rule]:
    """`weights.rules` between diffusers' names and `models.zimage.ZImageTransformer`'s parameters."""
    patch = f"{config.patch_size}-1"
    return [
        *layer(f"all_x_embedder.{patch}", "x_embedder"),
        Rule("(x_pad_token|cap_pad_token)", "{}"),
        *layer("t_embedder.mlp.0", "time/linear_1"),
        *layer("t_embedder.mlp.2", "time/linear_2"),
        *norm("cap_embedder.0", "cap_norm"),
        *layer("cap_embedder.1", "cap_embedder"),
        *_block("noise_refiner"),
        *_block("context_refiner"),
        *_block("layers"),
        *layer(f"all_final_layer.{patch}.adaLN_modulation.1", "final_layer/modulation"),
        *layer(f"all_final_layer.{patch}.linear", "final_layer/linear"),
    ]
