"""Pipelines and rewards of a few thousand random weights, saved as the real ones are."""

import json

import diffusers
import transformers as T

from tests.parity.oracle import randomise
from tests.parity.vocabularies import CLIP_BOS, CLIP_EOS, CLIP_VOCAB, save_clip_tokenizer

HEIGHT, WIDTH = 32, 48
PROMPTS = ["a cat", "a photo of a dog on the mat", "red, red cat of the dog", "mat", "the cat of cats"]
TOWER = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
TEXT = dict(TOWER, vocab_size=CLIP_VOCAB, bos_token_id=CLIP_BOS, eos_token_id=CLIP_EOS, pad_token_id=CLIP_EOS)
UNET = dict(  # text is attended to in the middle only, which halves the time to compile
    block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
)  # fmt: skip
XL = dict(
    UNET, transformer_layers_per_block=(2,), attention_head_dim=(2,), cross_attention_dim=16 + 24,
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=6,
    projection_class_embeddings_input_dim=6 * 6 + 20,
)  # fmt: skip


def _tokenizer(folder, **settings):
    save_clip_tokenizer(folder)
    return T.CLIPTokenizer.from_pretrained(folder, **settings)


def _vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.13025,
    )  # fmt: skip


def _scheduler():
    return diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def save_sdxl(folder):
    """A StableDiffusionXLPipeline in `folder`; returns it."""
    encoder = T.CLIPTextModel(T.CLIPTextConfig(**TEXT, hidden_size=16, hidden_act="quick_gelu", projection_dim=16))
    text_2 = T.CLIPTextConfig(**TEXT, hidden_size=24, hidden_act="gelu", projection_dim=20)
    encoder_2 = T.CLIPTextModelWithProjection(text_2)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=randomise(_vae(), 3), text_encoder=randomise(encoder, 1), text_encoder_2=randomise(encoder_2, 2),
        tokenizer=_tokenizer(folder / "t1"), tokenizer_2=_tokenizer(folder / "t2", pad_token="!"),
        unet=randomise(diffusers.UNet2DConditionModel(**XL), 4), scheduler=_scheduler(), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_generator(folder, seed=5):
    """Another UNet of the same architecture, as one bare file; returns its path."""
    randomise(diffusers.UNet2DConditionModel(**XL), seed).save_pretrained(folder)
    return folder / "diffusion_pytorch_model.safetensors"


def save_sd15(folder):
    """The parts of a StableDiffusionPipeline that the recipe reads."""
    config = dict(UNET, attention_head_dim=2, cross_attention_dim=16)
    randomise(diffusers.UNet2DConditionModel(**config), 6).save_pretrained(folder / "unet")
    randomise(_vae(), 3).save_pretrained(folder / "vae")
    text = T.CLIPTextConfig(**TEXT, hidden_size=16, hidden_act="quick_gelu", projection_dim=16)
    randomise(T.CLIPTextModel(text), 1).save_pretrained(folder / "text_encoder")
    save_clip_tokenizer(folder / "tokenizer")
    return folder


def save_clip(folder, seed):
    """A whole CLIP with its tokenizer, to be a reward."""
    config = T.CLIPConfig(
        text_config=dict(TEXT, hidden_size=16), projection_dim=12,
        vision_config=dict(TOWER, hidden_size=16, image_size=28, patch_size=7),
    )  # fmt: skip
    randomise(T.CLIPModel(config), seed).save_pretrained(folder)
    save_clip_tokenizer(folder)
    return folder


def redness(images, tokens):
    """A user's reward: mean of red above the others."""
    return images[..., 0].mean((1, 2)) - images.mean((1, 2, 3))


def save_prompts(path, prompts=PROMPTS):
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def settings(root):
    """Saves a whole set of inputs under `root`; returns the pipeline and `{config key: value}` for a tiny run."""
    pipeline = save_sdxl(root / "base")
    return pipeline, {
        "weights.base": str(root / "base"), "weights.generator": str(save_generator(root / "generator")),
        "data.prompts": str(save_prompts(root / "prompts.jsonl")), "data.cache": str(root / "cache"),
        "rewards.hps": str(save_clip(root / "hps", 7)), "rewards.pickscore": str(save_clip(root / "pickscore", 8)),
        "rewards.custom": "tests.text_to_image.tiny_sdxl:redness", "rewards.custom_differentiable": True,
        "rewards.held_out": ("custom",), "rewards.weights.pickscore": 0.5, "data.dtype": "float32",
        "data.batch_size": 5, "image.height": HEIGHT, "image.width": WIDTH, "network.dtype": "float32",
        "network.frozen_dtype": "float32", "network.reward_vae_dtype": "float32", "network.remat": "none", "network.vae_remat": "none", "rewards.remat": "none",
        "align.steps": 3, "align.batch_size": 2, "align.ta_updates": 1, "align.generator_optimizer.lr": 1e-3,
        "align.generator_optimizer.warmup": 1, "align.ta_optimizer.lr": 1e-3, "align.ta_optimizer.warmup": 1,
        "checkpoint.every": 2, "log.every": 1, "eval.every": 2, "eval.num": 3, "eval.judge": "tests.text_to_image.runs:told", "eval.batch_size": 2, "export.dtype": "float32",
    }  # fmt: skip


def one_score_for_all(images, prompts):
    """A reward that returns the wrong shape."""
    return images.mean()


def unfinished(images, prompts):
    """A reward that fails."""
    raise RuntimeError("the model is not there")
