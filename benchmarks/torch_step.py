"""The torch side of step_gpu.py: the same step from diffusers' and transformers' networks, bfloat16, compiled.

    TA         n times: x0 = g(z), no gradient; ε-loss of the TA at a random t; AdamW
    generator  x0 = g(z); x_t; x̂_c and ∂r(decode(x̂_c))/∂x_t by one backward pass; x̂_u, x̂_TA; AdamW; average
    log        reward of decode(x0)

Adapters (rank 32) are hooks on the attention projections; generator and TA have a base each in bfloat16, and the
reference is the TA's base with its adapters off.  Trained in full, parameters are float32 under autocast.
"""

import contextlib
import copy
import time

import diffusers
import torch
import transformers
from torch.nn import functional as F

from didr_jax.models.clip import architecture
from didr_jax.models.published import PIPELINES
from didr_jax.rewards.preprocess import CLIP_MEAN, CLIP_STD

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Network(torch.nn.Module):
    """A UNet as an x̂0-denoiser, trained in full, by adapters, or not at all."""

    def __init__(self, unet, alphas, config, train: str | None):
        super().__init__()
        self.unet, self.alphas, self.active, self.dtype = unet, alphas, True, getattr(torch, config.network.dtype)
        self.size, self.adapters = (config.image.height, config.image.width), torch.nn.ParameterList()
        unet.requires_grad_(train == "full")
        if train != "full":
            unet.to(getattr(torch, config.network.frozen_dtype))
        if train == "lora":
            for name, layer in unet.named_modules():
                if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                    self._adapt(layer, config.lora.rank, config.lora.alpha / config.lora.rank)
        if config.network.remat != "none":
            unet.enable_gradient_checkpointing()
        unet.train()  # checkpoints nothing otherwise; there is no dropout

    def _adapt(self, layer, rank: int, scale: float):
        a = torch.nn.Parameter(torch.randn(layer.in_features, rank, device=DEVICE) * 0.02)
        b = torch.nn.Parameter(torch.zeros(rank, layer.out_features, device=DEVICE))
        self.adapters.extend([a, b])

        def add(_, inputs, out):
            x = inputs[0]
            return out + scale * (x @ a.to(x.dtype) @ b.to(x.dtype)) if self.active else out

        layer.register_forward_hook(add)

    def trained(self):
        return [p for p in self.parameters() if p.requires_grad]

    def forward(self, x_t, step, text):
        ids = torch.tensor([[*self.size, 0, 0, *self.size]], device=DEVICE).expand(len(x_t), -1)
        added = {"text_embeds": text["pooled"], "time_ids": ids}
        with torch.autocast(DEVICE, self.dtype, enabled=self.dtype != torch.float32):
            eps = self.unet(x_t, step, text["prompt"], added_cond_kwargs=added, return_dict=False)[0].float()
        alpha = self.alphas[step][:, None, None, None]
        return (x_t - (1 - alpha).sqrt() * eps) / alpha.sqrt()


class Step:
    """Called, it does one training step on random data."""

    def __init__(self, config, compiled: bool):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")  # TF32, as XLA does
        self.config, parts = config, PIPELINES[config.compile.pipeline]
        self.device_name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=DEVICE) ** 2
        self.alphas = torch.cumprod(1 - betas, 0)
        train = config.network.generator
        with torch.device(DEVICE):
            unet = diffusers.UNet2DConditionModel(**parts["unet"]).to(memory_format=torch.channels_last)
            self.vae = diffusers.AutoencoderKL(**parts["vae"]).requires_grad_(False).to(memory_format=torch.channels_last)
            self.clip = self._clip(config).requires_grad_(False)
        self.ta = Network(copy.deepcopy(unet), self.alphas, config, train)
        self.reference = Network(copy.deepcopy(unet), self.alphas, config, None) if train == "full" else self.ta
        self.generator = Network(unet, self.alphas, config, train)
        if config.network.vae_remat != "none":
            self.vae.enable_gradient_checkpointing()
            self.vae.train()
        if compiled:
            for network in {self.ta, self.reference, self.generator}:
                network.unet.compile()
            self.vae.decoder.compile()
            self.clip.vision_model.compile()
        knobs = dict(lr=5e-7, weight_decay=0.01, fused=DEVICE == "cuda")
        self.optimisers = [torch.optim.AdamW(n.trained(), **knobs) for n in (self.ta, self.generator)]
        self.average = [p.detach().clone() for p in self.generator.trained()]
        n, context, vae = config.align.batch_size, parts["unet"]["cross_attention_dim"], parts["vae"]
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.shape = n, 4, config.image.height // factor, config.image.width // factor
        pooled = parts["unet"]["projection_class_embeddings_input_dim"] - 6 * parts["unet"]["addition_time_embed_dim"]
        self.text = {"prompt": torch.randn(n, 77, context, device=DEVICE), "pooled": torch.randn(n, pooled, device=DEVICE)}
        self.no_text = {name: torch.zeros_like(value) for name, value in self.text.items()}
        self.ids = torch.randint(1, 400, (n, 77), device=DEVICE)

    @staticmethod
    def _clip(config):
        vision, text = architecture("ViT-H-14")
        tower = lambda c: dict(hidden_size=c.width, intermediate_size=c.hidden, num_hidden_layers=c.depth,
                               num_attention_heads=c.heads, hidden_act=c.act, projection_dim=c.embed)  # fmt: skip
        model = transformers.CLIPModel(transformers.CLIPConfig(
            text_config=tower(text), vision_config=dict(tower(vision), patch_size=vision.patch), projection_dim=vision.embed
        ))  # fmt: skip
        if config.rewards.remat != "none":
            model.vision_model.train()
            model.gradient_checkpointing_enable()
        return model

    def reward(self, x0):
        """100 · cosine of the decoded image and the prompt, [b]."""
        image = self.vae.decode(x0 / self.vae.config.scaling_factor, return_dict=False)[0].clamp(-1, 1)
        pixels = F.interpolate(image / 2 + 0.5, size=(224, 224), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v, device=DEVICE)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        seen = self.clip.visual_projection(self.clip.vision_model((pixels - mean) / std).pooler_output)
        with torch.no_grad():
            said = self.clip.text_projection(self.clip.text_model(self.ids).pooler_output)
        return 100 * F.cosine_similarity(seen, said)

    @contextlib.contextmanager
    def adapters_off(self):
        """Makes the reference of a TA with adapters; backward passes, which recompute, belong inside."""
        self.reference.active = False
        yield
        self.reference.active = True

    def generate(self):
        n = self.shape[0]
        return self.generator(torch.randn(self.shape, device=DEVICE), torch.full((n,), 399, device=DEVICE), self.text)

    def diffuse(self, x0, low, high):
        step = torch.randint(low, high, (len(x0),), device=DEVICE)
        alpha, noise = self.alphas[step][:, None, None, None], torch.randn_like(x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, noise, step, alpha

    def update(self, which: int, network):
        torch.nn.utils.clip_grad_norm_(network.trained(), 10.0)
        self.optimisers[which].step()
        self.optimisers[which].zero_grad(set_to_none=True)

    def __call__(self):
        align = self.config.align
        for _ in range(align.ta_updates):
            with torch.no_grad():
                x0 = self.generate()
            x_t, noise, step, alpha = self.diffuse(x0, 0, 1000)
            eps = (x_t - alpha.sqrt() * self.ta(x_t, step, self.text)) / (1 - alpha).sqrt()
            F.mse_loss(eps, noise).backward()
            self.update(0, self.ta)

        x0 = self.generate()
        x_t, _, step, alpha = self.diffuse(x0.detach(), 20, 981)
        x_t.requires_grad_()
        with self.adapters_off():
            x_c = self.reference(x_t, step, self.text)
            drs = torch.autograd.grad(self.reward(x_c).sum() / align.beta, x_t)[0]
            with torch.no_grad():
                x_r = x_c + (align.guidance - 1) * (x_c - self.reference(x_t, step, self.no_text))
        with torch.no_grad():
            gap = self.ta(x_t, step, self.text) - x_r - (1 - alpha) / alpha.sqrt() * drs
            gradient = gap / (x0 - x_r).abs().mean((1, 2, 3), keepdim=True)
            reward = self.reward(x0)
        (gradient * x0).mean().backward()
        self.update(1, self.generator)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.generator.trained()], 1 - align.ema)
        reward.mean().item()  # waits for the device
        sync()


def sync():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def matmul_rate(n: int, dtype: str = "bfloat16") -> float:
    """Operations per second of an n × n product of random numbers."""
    a, laps = torch.randn(n, n, device=DEVICE).to(getattr(torch, dtype)), []
    for _ in range(23):
        sync()
        begin = time.perf_counter()
        a @ a
        sync()
        laps.append(time.perf_counter() - begin)
    return 2 * n**3 / sorted(laps[3:])[10]


def peak_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
