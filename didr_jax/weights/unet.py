"""Names of UNet2DConditionModel's tensors, SD 1.5 and SDXL."""

from didr_jax.models.unet_config import UNetConfig
from didr_jax.weights.rules import Rule, layer, norm

# A transformer sits in these places; its blocks are stacked on the Flax side.
_PLACES = {r"(down_blocks|up_blocks).(\d+).attentions.(\d+)": "{}_{}/attentions_{}",
           r"mid_block.attentions.(\d+)": "mid_block/attentions_{}"}  # fmt: skip
_RESNETS = {r"(down_blocks|up_blocks).(\d+).resnets.(\d+)": "{}_{}/resnets_{}",
            r"mid_block.resnets.(\d+)": "mid_block/resnets_{}"}  # fmt: skip


def unet_table(config: UNetConfig) -> list[Rule]:
    """`weights.rules` between diffusers' names and `models.unet.UNet`'s parameters."""
    table = [
        *layer("(conv_in|conv_out)", "{}"),
        *norm("conv_norm_out", "conv_norm_out"),
        *layer("(time_embedding|add_embedding).(linear_1|linear_2)", "{}/{}"),
        *layer(r"(down_blocks|up_blocks).(\d+).(downsamplers|upsamplers).0.conv", "{}_{}/{}_0/conv"),
    ]
    for torch, flax in _RESNETS.items():
        table += [
            *norm(f"{torch}.(norm1|norm2)", f"{flax}/{{}}"),
            *layer(f"{torch}.(conv1|conv2|time_emb_proj)", f"{flax}/{{}}"),
            *layer(f"{torch}.conv_shortcut", f"{flax}/conv_shortcut", layout="conv_1x1"),
        ]
    for torch, flax in _PLACES.items():
        table += transformer_rows(torch, flax, config)
    return table


def transformer_rows(torch: str, flax: str, config: UNetConfig) -> list[Rule]:
    """Of a transformer at a place in a UNet; below it the names are the same in all dialects."""
    projection = "kernel" if config.linear_projection else "conv_1x1"
    block, blocks = rf"{torch}.transformer_blocks.(?P<layer>\d+)", f"{flax}/transformer_blocks"
    return [
        *norm(f"{torch}.norm", f"{flax}/norm"),
        *layer(f"{torch}.(proj_in|proj_out)", f"{flax}/{{}}", layout=projection),
        *norm(f"{block}.(norm1|norm2|norm3)", f"{blocks}/{{}}"),
        *layer(f"{block}.(attn1|attn2).(to_q|to_k|to_v)", f"{blocks}/{{}}/{{}}"),
        *layer(f"{block}.(attn1|attn2).to_out.0", f"{blocks}/{{}}/to_out"),
        *layer(f"{block}.ff.net.0.proj", f"{blocks}/ff/proj_in"),
        *layer(f"{block}.ff.net.2", f"{blocks}/ff/proj_out"),
    ]
