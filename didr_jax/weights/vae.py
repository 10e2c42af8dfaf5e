"""Names of AutoencoderKL's tensors, with or without quant convs, new and old names of attention."""

from didr_jax.weights.rules import ignore, layer, norm

_ATTENTION = "(encoder|decoder).mid_block.attentions.0"
_FLAX = "{}/mid_block/attentions_0"
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out"}  # files of 2022 and 2023

VAE_TABLE = [
    *layer("(quant_conv|post_quant_conv)", "{}", layout="conv_1x1"),
    *layer("(encoder|decoder).(conv_in|conv_out)", "{}/{}"),
    *norm("(encoder|decoder).conv_norm_out", "{}/conv_norm_out"),
    *layer(r"(encoder|decoder).(down_blocks|up_blocks).(\d+).(downsamplers|upsamplers).0.conv", "{}/{}_{}/{}_0/conv"),
    *norm(r"(encoder|decoder).(down_blocks|up_blocks).(\d+).resnets.(\d+).(norm1|norm2)", "{}/{}_{}/resnets_{}/{}"),
    *layer(r"(encoder|decoder).(down_blocks|up_blocks).(\d+).resnets.(\d+).(conv1|conv2)", "{}/{}_{}/resnets_{}/{}"),
    *layer(r"(encoder|decoder).(down_blocks|up_blocks).(\d+).resnets.(\d+).conv_shortcut",
           "{}/{}_{}/resnets_{}/conv_shortcut", layout="conv_1x1"),
    *norm(r"(encoder|decoder).mid_block.resnets.(\d+).(norm1|norm2)", "{}/mid_block/resnets_{}/{}"),
    *layer(r"(encoder|decoder).mid_block.resnets.(\d+).(conv1|conv2)", "{}/mid_block/resnets_{}/{}"),
    *norm(f"{_ATTENTION}.group_norm", f"{_FLAX}/group_norm"),
    *layer(f"{_ATTENTION}.(to_q|to_k|to_v)", f"{_FLAX}/attention/{{}}"),
    *layer(f"{_ATTENTION}.to_out.0", f"{_FLAX}/attention/to_out"),
    *[row for old, new in _OLD.items() for row in layer(f"{_ATTENTION}.{old}", f"{_FLAX}/attention/{new}")],
]  # fmt: skip

# Before this table, or that of single files, where only the decoder is wanted.
NO_ENCODER = ignore("(encoder|quant_conv).(.+)")
