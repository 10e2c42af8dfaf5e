"""What can be done about the memory of a text-to-image step, for plans (`planning.report`)."""

from didr_jax.config import flatten
from didr_jax.training.recipe import Advice


def recomputed(c, p, keys=("network.remat", "network.vae_remat", "rewards.remat")) -> set[str]:
    """What networks recompute, as the plan has it."""
    config = flatten(c)
    return {p.words.get(key, config[key]) for key in keys}


# When a plan does not fit, mildest first.
REMEDIES = (
    Advice(
        lambda c, p: recomputed(c, p) != {"blocks"},
        "{network.remat,network.vae_remat,rewards.remat}=blocks",
        "recomputes blocks instead of keeping what they compute",
    ),
    Advice(
        lambda c, p: c.network.attention == "xla",
        "network.attention={attention}",
        "never holds the matrix of attention weights",
    ),
    Advice(
        lambda c, p: c.network.reward_vae_dtype == "float32",
        "network.reward_vae_dtype=bfloat16",
        "halves the decoder's activations",
    ),
    Advice(
        lambda c, p: not c.network.reward_vae,
        "network.reward_vae=madebyollin/{taesdxl,taesd,taef1}",
        "differentiates the reward through a tiny decoder",
    ),
    Advice(
        lambda c, p: c.align.ta_optimizer.moment_dtype == "float32" and c.network.ta == "full",
        "align.{ta,generator}_optimizer.moment_dtype=bfloat16",
        "first moments in half the bytes",
    ),
    Advice(
        lambda c, p: (
            (c.align.ta_optimizer.second_moment_dtype, c.align.ta_optimizer.name) == ("float32", "adamw")
            and c.network.ta == "full"
        ),
        "align.{ta,generator}_optimizer.second_moment_dtype=bfloat16",
        "second moments in half the bytes, rounded stochastically",
    ),
    Advice(lambda c, p: c.network.ta == "full", "network.ta=lora", "trains adapters of the frozen base as TA"),
    Advice(lambda c, p: c.network.generator == "full", "network.generator=lora", "trains adapters of the generator"),
    Advice(
        lambda c, p: "full" in (c.network.ta, c.network.generator) and c.align.ta_optimizer.name == "adamw",
        "align.{ta,generator}_optimizer.name=adafactor …b1=0",
        "almost no optimiser state",
    ),
    Advice(
        lambda c, p: "full" in (c.network.ta, c.network.generator) and c.network.param_dtype == "float32",
        "network.param_dtype=bfloat16",
        "half the parameters; loses updates smaller than 1/256 of a weight",
    ),
)

# When there is room to spare.
LUXURIES = (
    Advice(
        lambda c, p: "blocks" in recomputed(c, p, ("network.remat", "rewards.remat")),
        "{network,rewards}.remat=products",
        "recomputes less",
    ),
)
