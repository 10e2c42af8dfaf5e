"""Names of ZImageTransformer2DModel's tensors."""

from didr_jax.models.zimage_config import ZImageConfig
from didr_jax.weights.rules import Rule, ignore, layer, norm

STAGES = ("noise_refiner", "context_refiner", "layers")


def _block(stage: str) -> list[Rule]:
    torch, flax = f"{stage}.(?P<layer>\\d+)", stage
    return [
        *layer(f"{torch}.attention.(to_q|to_k|to_v)", f"{flax}/attention/{{}}"),
        *layer(f"{torch}.attention.to_out.0", f"{flax}/attention/to_out"),
        *norm(f"{torch}.attention.(norm_q|norm_k)", f"{flax}/attention/{{}}"),
        *_besides_attention(torch, flax),
    ]


def _fused_block(stage: str) -> list[Rule]:
    torch, flax = f"{stage}.(?P<layer>\\d+)", stage
    return [
        *(
            Rule(f"{torch}.attention.qkv.weight", f"{flax}/attention/{name}/kernel", "kernel", part=(i, 3))
            for i, name in enumerate(("to_q", "to_k", "to_v"))
        ),
        *layer(f"{torch}.attention.out", f"{flax}/attention/to_out"),
        *norm(f"{torch}.attention.q_norm", f"{flax}/attention/norm_q"),
        *norm(f"{torch}.attention.k_norm", f"{flax}/attention/norm_k"),
        *_besides_attention(torch, flax),
    ]


def _besides_attention(torch: str, flax: str) -> list[Rule]:
    return [
        *layer(f"{torch}.feed_forward.(w1|w2|w3)", f"{flax}/feed_forward/{{}}"),
        *norm(f"{torch}.(attention_norm1|attention_norm2|ffn_norm1|ffn_norm2)", f"{flax}/{{}}"),
        *layer(f"{torch}.adaLN_modulation.0", f"{flax}/modulation"),
    ]


def _around(embedder: str, final: str) -> list[Rule]:
    return [
        *layer(embedder, "x_embedder"),
        Rule("(x_pad_token|cap_pad_token)", "{}"),
        *layer("t_embedder.mlp.0", "time/linear_1"),
        *layer("t_embedder.mlp.2", "time/linear_2"),
        *norm("cap_embedder.0", "cap_norm"),
        *layer("cap_embedder.1", "cap_embedder"),
        *layer(f"{final}.adaLN_modulation.1", "final_layer/modulation"),
        *layer(f"{final}.linear", "final_layer/linear"),
    ]


def zimage_table(config: ZImageConfig) -> list[Rule]:
    """`weights.rules` between diffusers' names and `models.zimage.ZImageTransformer`'s parameters."""
    patch = f"{config.patch_size}-1"
    around = _around(f"all_x_embedder.{patch}", f"all_final_layer.{patch}")
    return [*around, *(row for stage in STAGES for row in _block(stage))]


def zimage_single_table(config: ZImageConfig) -> list[Rule]:
    """The names of the authors' own code, which single files have (ComfyUI's too): q, k and v are one tensor."""
    blocks = (row for stage in STAGES for row in _fused_block(stage))
    return [*_around("x_embedder", "final_layer"), *blocks, *ignore("norm_final.weight")]
