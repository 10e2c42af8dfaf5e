"""A Z-Image pipeline of a few thousand random weights, saved by diffusers, and the config of a tiny run on it."""

import diffusers
import transformers as T

from tests.parity.oracle import randomise
from tests.parity.vocabularies import CHAT_WORDS, chat_tokenizer
from tests.text_to_image.tiny_sdxl import save_clip, save_clip_tokenizer, save_prompts

HEIGHT, WIDTH = 16, 24
PROMPTS = ["a red cat on a mat", "mat on " * 4, "red", "a cat", "on a mat a cat on a red mat"]  # of one padded length,
MAX_LENGTH = 32
RAGGED = {"prompts": [PROMPTS[0], "mat on " * 14, *PROMPTS[2:]], "max_length": 40}  # of two: a step is compiled for either
TRANSFORMER = dict(
    dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, in_channels=4,
    axes_dims=[4, 4, 4], axes_lens=[96, 16, 16],
)  # fmt: skip


def transformer(seed):
    return randomise(diffusers.ZImageTransformer2DModel(**TRANSFORMER), seed)


def save_base(folder):
    """A ZImagePipeline in `folder`; returns it."""
    encoder = T.Qwen3Config(
        vocab_size=len(CHAT_WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    pipeline = diffusers.ZImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0), randomise(vae), randomise(T.Qwen3Model(encoder), 1),
        chat_tokenizer(), transformer(2),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_turbo(folder, seed=5, shift=3.0):
    """What the recipe reads of a pipeline that the generator begins with; returns the folder."""
    transformer(seed).save_pretrained(folder / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    return folder


def settings(root, prompts=PROMPTS, max_length=MAX_LENGTH):
    """Saves a whole set of inputs under `root`; returns the base pipeline and `{config key: value}` for a tiny run."""
    pipeline = save_base(root / "base")
    return pipeline, {
        "weights.base": str(root / "base"), "weights.generator": str(save_turbo(root / "turbo")),
        "data.prompts": str(save_prompts(root / "prompts.jsonl", prompts)), "data.cache": str(root / "cache"),
        "data.max_length": max_length, "data.encoder_dtype": "float32", "data.dtype": "float32", "data.batch_size": 5,
        "rewards.custom": "tests.text_to_image.tiny_sdxl:redness", "rewards.custom_differentiable": True,
        "image.height": HEIGHT, "image.width": WIDTH, "network.dtype": "float32", "network.frozen_dtype": "float32",
        "network.remat": "none", "network.vae_remat": "none", "rewards.remat": "none", "lora.rank": 2, "lora.alpha": 4.0,
        "network.reward_vae_dtype": "float32",
        "align.steps": 3, "align.batch_size": 2, "align.ta_updates": 1, "align.generator_optimizer.lr": 1e-2,
        "align.generator_optimizer.warmup": 1, "align.ta_optimizer.lr": 1e-2, "align.ta_optimizer.warmup": 1,
        "align.ema": 0.5, "checkpoint.every": 2, "log.every": 1, "eval.every": 2, "eval.num": 3, "eval.judge": "tests.text_to_image.runs:told", "eval.batch_size": 3,
        "export.dtype": "float32",
    }  # fmt: skip


def save_hps(folder):
    """A CLIP reward and the tokenizer that comes with it: Z-Image's own folder has none for it."""
    save_clip_tokenizer(folder / "tokenizer")
    return {"rewards.hps": str(save_clip(folder / "hps", 7)), "rewards.clip_tokenizer": str(folder / "tokenizer")}
