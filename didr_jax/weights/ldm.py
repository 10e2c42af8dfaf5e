"""Names that Stable Diffusion's networks have in single files: those of the code they were trained with (LDM, SGM).

    model.diffusion_model.…                                UNet: blocks are numbered through, samplers included
    first_stage_model.…                                    VAE: the decoder's levels are counted from the finest
    cond_stage_model.transformer.… (SD 1.5)                text encoder, as Hugging Face names it
    conditioner.embedders.0.transformer.…, .1.model.…      SDXL's two, the second as open_clip names it

The rows are without these prefixes (`weights.single_file`).
"""

from didr_jax.models.unet_config import UNetConfig
from didr_jax.models.vae import VAEConfig
from didr_jax.weights.rules import Rule, layer, norm
from didr_jax.weights.unet import transformer_rows


def _resnet(torch: str, flax: str) -> list[Rule]:
    return [
        *norm(f"{torch}.in_layers.0", f"{flax}/norm1"),
        *layer(f"{torch}.in_layers.2", f"{flax}/conv1"),
        *layer(f"{torch}.emb_layers.1", f"{flax}/time_emb_proj"),
        *norm(f"{torch}.out_layers.0", f"{flax}/norm2"),
        *layer(f"{torch}.out_layers.3", f"{flax}/conv2"),
        *layer(f"{torch}.skip_connection", f"{flax}/conv_shortcut", layout="conv_1x1"),
    ]


def ldm_unet_table(config: UNetConfig) -> list[Rule]:
    """`weights.rules` between a single file's names and `models.unet.UNet`'s parameters."""
    levels = range(len(config.channels))
    table = [
        *layer("time_embed.0", "time_embedding/linear_1"),
        *layer("time_embed.2", "time_embedding/linear_2"),
        *layer("label_emb.0.0", "add_embedding/linear_1"),
        *layer("label_emb.0.2", "add_embedding/linear_2"),
        *layer("input_blocks.0.0", "conv_in"),
        *_resnet("middle_block.0", "mid_block/resnets_0"),
        *transformer_rows("middle_block.1", "mid_block/attentions_0", config),
        *_resnet("middle_block.2", "mid_block/resnets_1"),
        *norm("out.0", "conv_norm_out"),
        *layer("out.2", "conv_out"),
    ]
    n = 1
    for level in levels:
        for i in range(config.layers[level]):
            table += _resnet(f"input_blocks.{n}.0", f"down_blocks_{level}/resnets_{i}")
            if config.attention[level]:
                table += transformer_rows(f"input_blocks.{n}.1", f"down_blocks_{level}/attentions_{i}", config)
            n += 1
        if level < levels[-1]:
            table += layer(f"input_blocks.{n}.0.op", f"down_blocks_{level}/downsamplers_0/conv")
            n += 1
    n = 0
    for block, level in enumerate(reversed(levels)):
        for i in range(config.layers[level] + 1):
            table += _resnet(f"output_blocks.{n}.0", f"up_blocks_{block}/resnets_{i}")
            if config.attention[level]:
                table += transformer_rows(f"output_blocks.{n}.1", f"up_blocks_{block}/attentions_{i}", config)
            if i == config.layers[level] and level > 0:
                place = 2 if config.attention[level] else 1
                table += layer(f"output_blocks.{n}.{place}.conv", f"up_blocks_{block}/upsamplers_0/conv")
            n += 1
    return table


def ldm_vae_table(config: VAEConfig) -> list[Rule]:
    """`weights.rules` between a single file's names and `models.vae.AutoencoderKL`'s parameters."""
    coder, last = "(encoder|decoder)", len(config.channels) - 1
    table = [
        *layer("(quant_conv|post_quant_conv)", "{}", layout="conv_1x1"),
        *layer(f"{coder}.(conv_in|conv_out)", "{}/{}"),
        *norm(f"{coder}.norm_out", "{}/conv_norm_out"),
        *norm(f"{coder}.mid.attn_1.norm", "{}/mid_block/attentions_0/group_norm"),
        *layer(f"{coder}.mid.attn_1.proj_out", "{}/mid_block/attentions_0/attention/to_out", layout="conv_1x1"),
    ]
    for letter in "qkv":
        table += layer(f"{coder}.mid.attn_1.{letter}", f"{{}}/mid_block/attentions_0/attention/to_{letter}", layout="conv_1x1")
    places = [(f"{coder}.mid.block_{i + 1}", f"{{}}/mid_block/resnets_{i}") for i in (0, 1)]
    for level in range(last + 1):
        places.append((rf"encoder.down.{level}.block.(\d+)", f"encoder/down_blocks_{level}/resnets_{{}}"))
        places.append((rf"decoder.up.{level}.block.(\d+)", f"decoder/up_blocks_{last - level}/resnets_{{}}"))
        table += layer(f"encoder.down.{level}.downsample.conv", f"encoder/down_blocks_{level}/downsamplers_0/conv")
        table += layer(f"decoder.up.{level}.upsample.conv", f"decoder/up_blocks_{last - level}/upsamplers_0/conv")
    for torch, flax in places:
        table += [
            *norm(f"{torch}.(norm1|norm2)", f"{flax}/{{}}"),
            *layer(f"{torch}.(conv1|conv2)", f"{flax}/{{}}"),
            *layer(f"{torch}.nin_shortcut", f"{flax}/conv_shortcut", layout="conv_1x1"),
        ]
    return table
