"""Every knob that recipes share, once, with its meaning and unit.

A recipe file in `configs/` calls `base()`, sets what differs and adds the knobs of its own data and
networks.  Values marked [ours] have no published counterpart.
"""

import json

import ml_collections
from ml_collections import config_dict


def _section(**knobs) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(knobs)


def optimizer(lr: float) -> ml_collections.ConfigDict:
    """The knobs of one optimiser."""
    return _section(
        name="adamw",  # adamw | adafactor | lion | muon | sgd
        lr=lr,  # peak learning rate; of adafactor, relative to the parameters' root mean square
        warmup=50,  # updates of linear warm-up
        decay=False,  # cosine decay to zero where the stage ends, instead of constant
        b1=0.9,  # decay of the first moment; momentum of sgd, muon and adafactor (0: none)
        b2=0.999,  # decay of adamw's second moment; of lion's momentum (its authors: 0.99)
        eps=1e-8,  # added to the root of adamw's second moment, and to the norm by which muon divides
        muon_rms=0.2,  # root mean square of muon's update of a matrix at a rate of 1; 0.2 is about adamw's
        weight_decay=0.0,  # decoupled: a step takes off this times the learning rate
        clip=10.0,  # global gradient norm above which a gradient is scaled down
        moment_dtype="float32",  # of the first moment or momentum, as it is stored: float32 | bfloat16
        second_moment_dtype="float32",  # of adamw's second moment (muon's, of what is no kernel); bfloat16 is rounded stochastically
    )


def fit(steps: int, lr: float, batch_size: int = 128) -> ml_collections.ConfigDict:
    """The knobs of a stage that fits one network to data."""
    return _section(
        steps=steps,  # updates
        batch_size=batch_size,  # samples per update, over all devices
        micro_batches=1,  # parts of the batch whose gradients are accumulated one after the other
        ema=0.999,  # decay of the parameters' moving average, which is what later stages use
        optimizer=optimizer(lr),
    )


def game(steps: int, lr: float, batch_size: int = 64) -> ml_collections.ConfigDict:
    """The knobs of a stage that trains a generator against its online (TA) score network."""
    return _section(
        objective="didr",  # a key of didr_jax.objectives.OBJECTIVES
        steps=steps,  # generator updates
        batch_size=batch_size,  # samples per update of either network, over all devices
        micro_batches=1,  # parts of the batch whose gradients are accumulated one after the other
        ta_updates=5,  # TA updates before each generator update (DMD2)
        ta_reuse=1,  # of those, how many in a row take the same samples, each with noise and times of its own (didr_jax.training.step)
        ta_after=False,  # whether the last of them comes after the generator's update and takes its samples (DMD2's code)
        guidance=1.0,  # classifier-free guidance scale w on the reference; 1 turns it off
        weighting="auto",  # w' of the score gap: dmd2 | x0 | ikl; auto: x0 for di, as published, dmd2 for the others
        generator_t_min=0.02,  # range of the diffusion time in the generator's update (DMD2)
        generator_t_max=0.98,  # its end
        ta_t_min=0.001,  # range of the diffusion time in the TA's update
        ta_t_max=0.999,  # its end
        ta_float32=False,  # evaluate the TA in float32 in the generator's loss, as DMD2's code does, where networks compute in less
        ta_weighting="v",  # prediction in whose units the TA's loss is measured: eps | v | velocity | x0
        ema=0.995,  # decay of the generator's moving average, which is what is evaluated [ours]
        ema_dtype="",  # of that average: float32 | bfloat16, rounded stochastically; empty: the parameters'
        # the reward's part
        beta=1.0,  # temperature of the tilt p_ref exp(r/beta), in units of the reward; small is strong
        tilt="global",  # the target of didr: global (the paper's) | anchored | advantage | local (didr_jax.tilts) [ours]
        tilt_t0=0.5,  # of the others: the time above which only the layout of an image is seen
        tilt_anchor=2.0,  # of anchored: how many times more the generator is held to the reference there; 0: global
        # of the diffused reward score: a key of didr_jax.diffused_reward.ESTIMATORS, or
        estimator="auto",  # auto: conjugate; own where the reward looks through a decoder; covariance where it has no gradient
        num_steps=1,  # K: denoiser evaluations per short denoising
        num_samples=1,  # N: short denoisings per estimate, for the estimators that sample
        stochasticity=1.0,  # eta of their denoising: 0 deterministic, 1 ancestral
        trust_radius=config_dict.placeholder(float),  # largest L2 norm of the tilt per sample, in x0 units; None: no limit
        guard=True,  # whether conjugate (K = 1) and own are shortened where the reward does not make their claim good
        max_shift=2.0,  # how far `shifted` and `conjugate` may move the reference's input, in noise norms; 0: no limit
        huber=1e-3,  # c of the pseudo-Huber distance of sim and distar, in x0 units
        generator_optimizer=optimizer(lr),
        ta_optimizer=optimizer(lr),
    )


def base() -> ml_collections.ConfigDict:
    """The knobs that every recipe has."""
    return _section(
        recipe="",  # key of didr_jax.recipes.RECIPES: which data and networks
        seed=0,  # of everything random
        stages=(),  # names of the stages, in order; a finished one is never redone
        schedule=_section(
            name="cosine",  # cosine | ddpm | rectified_flow
        ),
        init_from="",  # WORKDIR or WORKDIR@STEP of another run, whose networks and optimisers the last stage begins with
        unroll=False,  # lay inner loops out flat: set where convolutions run on a CPU
        align=game(steps=500, lr=1e-4),
        log=_section(
            every=50,  # steps between lines of metrics.jsonl and of the screen
            quiet=False,  # of figures, one line a minute on the screen; metrics.jsonl has all
            tensorboard=False,  # write TensorBoard event files beside metrics.jsonl
            service="",  # send the figures to a tracking service as well: wandb | trackio
            project="didr_jax",  # the service's name for a group of runs
            peak_tflops=0.0,  # of one device, for the log's utilisation; 0: that of a chip in didr_jax.planning.targets, if it is one
        ),
        checkpoint=_section(
            every=100,  # steps between saves
            keep=2,  # how many of the newest saves of a stage are kept
            keep_every=0,  # keep for good the saves whose step is a multiple of this; 0: none
            best="",  # keep also the save with the best value of this logged figure, e.g. reward
            best_mode="max",  # max | min: what is best
        ),
        watch=_section(
            patience=20,  # steps in a row with a non-finite update after which the run saves and stops
            dropped=0.1,  # share of samples without a finite reward, since the last line of the log, that is warned of
            # where a figure that is kept falls while the trained reward rises (didr_jax.training.hacking): warn | stop | off
            hacking="warn",
        ),
        profile=_section(
            stage="",  # the stage in which a trace for TensorBoard or Perfetto is taken, into workdir/profile
            first=10,  # how many steps after the stage's (re)start
            steps=3,  # how many steps long
        ),
        mesh=_section(  # sizes multiply to the number of devices; -1: what is left (didr_jax.training.parallel)
            data=-1,  # splits batches, copies parameters
            fsdp=1,  # splits batches and parameters
            tensor=1,  # splits parameters, by the rules
            rules=(),  # rows "regex=axes" that decide before the default how leaves of the state are split
            min_size=2**16,  # leaves with fewer entries stay whole unless a rule splits them, and on the devices
            host=(),  # of the state what waits in the host's memory for its update, as regular expressions, e.g. ("^ema/", "/(mu|nu)/")
        ),
        distributed=_section(  # processes of one run; all of them see the same workdir
            detect=True,  # join the others by what JAX finds of TPU pods, SLURM, Open MPI, Kubernetes
            coordinator="",  # host:port of process 0, where detect finds none
            processes=1,  # how many there are, with a coordinator
            process=0,  # which this one is, with a coordinator
            start_timeout=300,  # seconds to wait for the others at start
            lost_after=100,  # seconds of silence after which a process counts as dead and the others end
        ),
        calibrate=_section(  # --mode=calibrate, which proposes a beta; training reads none of it
            ratio=0.3,  # wanted of pull_to_divergence: the reward's part of the generator's gradient to the divergence's
            steps=10,  # steps of the TA before it is measured, with the generator at rest
            batches=4,  # of the stage's size, that are measured
            levels=8,  # rows of the table over noise levels
        ),
        compile=_section(  # what --mode=compile plans for; training reads none of it
            topology="",  # v5e:4x4, v6e:4x4, v5p:2x2x4, h100:8, ...; empty: the devices of this process
            pipeline="",  # published architecture that is planned if weights.base is empty
            utilisation=0.4,  # of the chips' peak that a step is assumed to reach
            only_shapes=False,  # count and add up, and compile nothing: seconds, but no activations
            effort=-1.0,  # of the TPU's compiler, -1 to 1; at 0 full-size networks take many times as long
        ),
        compiler=_section(
            flags="default",  # a set of XLA flags: default | gpu | tpu (docs/running.md)
            # where compiled programs are kept between runs: a directory; empty: nowhere; auto: didr_jax/compiled in the user's
            # cache ($XDG_CACHE_HOME, ~/.cache), or where JAX_COMPILATION_CACHE_DIR says
            cache="auto",
            effort=0.0,  # of the compiler to make programs fast, -1 to 1, in training and all that runs; at -1 a TPU's is quickest
        ),
    )


def flatten(config) -> dict:
    """`{"a.b": value}` of a nested config, as JSON would read it back (tuples as lists)."""
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, (ml_collections.ConfigDict, dict)):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[key] = json.loads(json.dumps(value))
    return flat
