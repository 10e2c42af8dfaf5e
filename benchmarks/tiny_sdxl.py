"""An SDXL of a few thousand weights with a reward tower to match, to try a benchmark on a CPU."""

from didr_jax.models import clip, published

PIPELINE = {
    "unet": dict(
        block_out_channels=[32], layers_per_block=1, norm_num_groups=8, transformer_layers_per_block=[2],
        down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], attention_head_dim=[2],
        cross_attention_dim=48, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    ),
    "vae": dict(
        block_out_channels=[16, 32], down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=8,
        up_block_types=["UpDecoderBlock2D"] * 2, scaling_factor=0.13025,
    ),
}  # fmt: skip
TOWERS = clip.VisionConfig(32, 2, 2, 64, patch=14, embed=16), clip.TextConfig(32, 2, 2, 64, embed=16)


def use(config) -> None:
    """Makes this the pipeline of a config without `weights.base`, and these towers HPSv2.1's."""
    published.PIPELINES["tiny"], clip.ARCHITECTURES["ViT-H-14"] = PIPELINE, TOWERS
    config.compile.pipeline = "tiny"
