"""What a config may say and probably does not mean: lines to warn with."""

from collections.abc import Iterator
from typing import Any

SLOW = 1e-5  # a learning rate of adamw at or below which adapters hardly move; full fine-tunes go below


def doubts(config: Any) -> Iterator[str]:
    """Of a text-to-image config."""
    for who in ("generator", "ta"):
        section = config.align[f"{who}_optimizer"]
        if config.network[who] == "lora" and section.name == "adamw" and section.lr <= SLOW:
            yield (
                f"config.network.{who}=lora with config.align.{who}_optimizer.lr = {section.lr:g}, a full fine-tune's rate: "
                "adapters take about 3e-5"
            )
