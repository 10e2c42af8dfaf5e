"""The knobs that all text-to-image recipes share, each once, with its meaning: a recipe sets what differs and adds its own."""

import ml_collections
from ml_collections import config_dict

from didr_jax.config import base, game
from didr_jax.rewards import REWARDS


def text_to_image() -> ml_collections.ConfigDict:
    """The config without recipe, schedule, training numbers of `align`, and adapted layers."""
    config = base()
    config.stages = ("align",)

    config.weights = ml_collections.ConfigDict()
    # Paths, and names on the hub: org/name, org/name@revision, org/name:subfolder/file (docs/weights.md).
    config.weights.base = ""  # the pipeline, folder or single file: reference, TA's start, text encoders, VAE
    config.weights.rest = ""  # pipeline folder of what a single file lacks; empty: the published pipeline's name
    config.weights.generator = ""  # file or folder of the initial generator's weights; empty: the base's own
    # LoRA file of any trainer, as --mode=export writes: where its adapters begin, or what is added to its weights
    config.weights.generator_adapter = ""
    config.weights.state = ""  # which of several copies in a single or torch file, e.g. ema | model; empty: the only one
    config.weights.variant = ""  # of the files in the folders, e.g. fp16; empty: the plain ones

    config.data = ml_collections.ConfigDict()
    config.data.prompts = ""  # .txt, .jsonl, .json, .csv, .tsv (also .gz), .parquet, or a folder of shards of one kind
    config.data.column = ""  # of a table; empty: prompt, caption or text
    config.data.limit = 0  # use the first so many prompts; 0: all
    config.data.cache = "~/.cache/didr_jax"  # where text embeddings are kept
    config.data.dtype = "float16"  # of the embeddings on disk: float16 | bfloat16 | float32
    config.data.batch_size = 32  # prompts embedded at once
    # when: cache (before training, each distinct prompt once, kept on disk) | in_loop (each batch as it comes: no disk,
    # but the text encoders stay on the devices)
    config.data.encode = "cache"

    config.image = ml_collections.ConfigDict()
    config.image.height = 1024  # pixels
    config.image.width = 1024  # pixels

    config.network = ml_collections.ConfigDict()
    config.network.generator = "full"  # what is trained of it: full | lora
    config.network.ta = "full"  # what is trained of the TA: full | lora
    config.network.generator_solver = "renoise"  # between its steps: renoise (LCM's and DMD2's) | ode (DDIM's, Euler's)
    config.network.dtype = "bfloat16"  # of the networks' computation
    config.network.param_dtype = "float32"  # of parameters that are trained in full
    config.network.frozen_dtype = "bfloat16"  # of the networks' parameters that are not trained
    config.network.vae_dtype = "float32"  # of the decoder; float16 overflows
    config.network.reward_vae_dtype = "bfloat16"  # of the decoding that the reward is differentiated through
    # a tiny decoder (AutoencoderTiny, folder or name: madebyollin/taesdxl) that the reward is differentiated through; logged
    # and evaluated rewards are of the pipeline's VAE in any case; empty: that one
    config.network.reward_vae = ""
    # what a backward pass recomputes: blocks (all of them) | products (all but products) | none | auto (as little as fits)
    config.network.remat = "auto"
    config.network.vae_remat = "auto"  # of the decoders
    config.network.attention = "xla"  # to pixels: xla | cudnn (NVIDIA) | splash (TPU) | chunked
    config.network.vae_attention = "chunked"  # one head of 512 channels: xla or chunked

    config.lora = ml_collections.ConfigDict()
    config.lora.rank = 32  # of the adapters (RTDMD, TDM-R1)
    config.lora.alpha = 64.0  # an adapter adds alpha/rank times its product
    config.lora.layers = ()  # expressions for the paths of adapted layers

    config.rewards = rewards()

    config.log.every = 10
    config.checkpoint.every = 500

    config.eval = ml_collections.ConfigDict()
    config.eval.prompts = ""  # a prompt file; empty: the training one
    config.eval.every = 500  # steps between evaluations while it trains; 0: none, only the report at the end
    config.eval.num = 16  # the first so many of its prompts
    config.eval.batch_size = 4  # images at once
    config.eval.columns = 4  # of the picture grids
    config.eval.pictures = 0  # how many images the grids show; 0: all
    # module:function (images uint8 [n, h, w, 3], prompts) -> {name: number}: figures of your own beside the rewards
    config.eval.judge = ""
    config.eval.seed = 1234  # of the evaluation's noise

    config.sample = ml_collections.ConfigDict()
    config.sample.num = 16  # images of --mode=sample, for the first prompts of eval.prompts
    config.sample.seed = 0  # of its noise

    config.export = ml_collections.ConfigDict()
    config.export.dtype = "float16"  # of the files of --mode=export: float32 | float16 | bfloat16
    config.export.adapter_rank = 0  # of adapters that come nearest to what full training changed, written beside; 0: none
    config.export.format = "diffusers"  # of names and files: diffusers | single_file (LDM's and ComfyUI's; adapters: kohya's)
    config.export.pipeline = False  # with the base's other parts: a pipeline that from_pretrained opens, or a whole checkpoint

    config.score = ml_collections.ConfigDict()
    config.score.images = ""  # folder of --mode=score
    config.score.prompts = ""  # .jsonl, .csv, .tsv or .parquet with an image name and a prompt a row
    config.score.batch_size = 8  # images at once
    config.score.outside = False  # images may lie outside of that folder: absolute names, "..", links

    config.benchmark = benchmark()

    config.tac = ml_collections.ConfigDict()  # --mode=tac: are the rewards aligned with people? (docs/metrics.md)
    config.tac.rankings = ""  # people's: test.json of ImageRewardDB or HPDv2, a .parquet of Pick-a-Pic
    config.tac.images = ""  # folder of the pictures that it names; Pick-a-Pic holds its own
    config.tac.limit = 0  # use the first so many prompts; 0: all
    config.tac.batch_size = 8  # pictures at once
    config.tac.validation = ""  # Pick-a-Pic's validation split, on which a reward's threshold of a tie is chosen; empty: 0
    config.tac.fit = False  # or --fit: also the weights of the mix with which it would agree best
    return config


def aligned(steps: int, lr: float, batch_size: int) -> ml_collections.ConfigDict:
    """The knobs of `align`, whose reward looks through a decoder (docs/estimators.md, "On a whole pipeline")."""
    config = game(steps, lr, batch_size)
    config.guard = False  # it would take away the pull at high noise, which a batch needs
    return config


def benchmark() -> ml_collections.ConfigDict:
    """Of --mode=benchmark: a prompt set, its pictures, its tables (docs/benchmarks.md)."""
    section = ml_collections.ConfigDict()
    section.name = ""  # a key of didr_jax.suites.table.SUITES: hpsv2, partiprompts, geneval, …, plain
    section.prompts = ""  # its prompt file or folder
    section.model = "trained"  # what makes the pictures: trained (a save of this workdir, --step) | initial | reference
    section.images = ""  # folder of pictures made elsewhere, in the set's layout: none are made, these are judged
    section.per_prompt = 0  # pictures of a prompt; 0: as many as the set asks for
    section.limit = 0  # the first so many prompts, of each style where it has styles; 0: all
    section.batch_size = 4  # pictures at once on a device
    section.steps = 50  # of the reference: DDIM's, or Euler's of a flow, spread as the schedule has it
    section.guidance = config_dict.placeholder(float)  # of the reference; None: that of align
    section.seed = 0  # of the noise of all pictures
    section.score_batch_size = 8  # pictures scored at once in a process
    section.results = ""  # of geneval: results.jsonl of its detector's program
    section.detections = ""  # of geneval: a .jsonl of boxes, judged by its rules
    return section


def stable_diffusion(pipeline: str, lr: float) -> ml_collections.ConfigDict:
    """What SDXL and SD 1.5 share.  Values marked [DMD2] are those of its published runs (arXiv 2405.14867 and its code).

    Args:
      pipeline: the published architecture that a plan falls back on: `compile.pipeline`.
      lr: peak learning rate of generator and TA, trained in full.
    """
    config = text_to_image()
    config.recipe = "stable_diffusion"
    config.compile.pipeline = pipeline
    config.schedule.name = "ddpm"

    config.network.generator_timesteps = (999,)  # of the generator, falling; one for each of its steps
    config.network.cross_attention = "xla"  # to the text: as network.attention
    config.lora.layers = (r"attn[12]/to_(q|k|v|out)$",)

    config.align = aligned(steps=10_000, lr=lr, batch_size=128)  # steps [ours], the rest [DMD2]
    config.align.ta_weighting = "eps"  # [DMD2]
    config.align.ta_t_min = 0.0  # timesteps 0 to 999 [DMD2]
    config.align.beta = 0.1  # [ours] in units of the mix: bring the logged pull_to_divergence to 0.1-1
    for part in (config.align.generator_optimizer, config.align.ta_optimizer):
        part.warmup = 500  # [ours]; DMD2's lasts two updates of its generator
        part.weight_decay = 0.01  # [DMD2]
    return config


def rewards() -> ml_collections.ConfigDict:
    """A reward is used if its own knob is given; the mix sums weight * shape((r - centre)/spread) (didr_jax.rewards).

    Every key but `held_out` and the last five sections, which have a key for each reward, is told by the rewards' records.
    """
    section = ml_collections.ConfigDict()
    for record in REWARDS.values():
        for knob in record.knobs.values():
            section[knob.key] = knob.default
    section.held_out = tuple(name for name, record in REWARDS.items() if record.held_out)  # measured, never trained on
    each = lambda value: ml_collections.ConfigDict({name: value() for name in REWARDS})
    section.weights = ml_collections.ConfigDict({name: record.weight for name, record in REWARDS.items()})  # in the mix
    section.centre = each(lambda: config_dict.placeholder(float))  # in place of the reward's own; None: that
    section.spread = each(lambda: config_dict.placeholder(float))  # in place of the reward's own; None: that
    section.shape = each(str)  # of its value in the mix: hinge:M | clip:L,M (docs/rewards.md); empty: plain
    section.prefix = each(str)  # what it reads before every prompt
    return section
