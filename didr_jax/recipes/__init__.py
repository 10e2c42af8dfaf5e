"""The recipes by name: each says, for a config, which stages it trains and how it is judged."""

from collections.abc import Callable

from didr_jax.checks import require_choice
from didr_jax.recipes.digits.recipe import Digits
from didr_jax.recipes.mixture import Mixture
from didr_jax.recipes.sprouts.families import sdxl as small_sdxl
from didr_jax.recipes.sprouts.families import zimage as small_zimage
from didr_jax.recipes.sprouts.recipe import Sprouts
from didr_jax.recipes.text_to_image.recipe import TextToImage
from didr_jax.recipes.text_to_image.stable_diffusion import StableDiffusion
from didr_jax.recipes.text_to_image.zimage import ZImage
from didr_jax.training.recipe import Recipe

RECIPES: dict[str, Callable[..., Recipe]] = {
    "digits": Digits,
    "mixture": Mixture,
    "sprouts": lambda config: Sprouts(config, small_zimage.ZImage()),
    "sprouts_sdxl": lambda config: Sprouts(config, small_sdxl.SDXL()),
    "stable_diffusion": lambda config: TextToImage(config, StableDiffusion),
    "zimage": lambda config: TextToImage(config, ZImage),
}


def build(config) -> Recipe:
    """The recipe of a validated config.

    Raises:
      InputError: an unknown recipe, or a stage that the recipe does not have.
    """
    require_choice("recipe", config.recipe, RECIPES)
    recipe = RECIPES[config.recipe](config)
    for name in config.stages:
        require_choice("stages", name, recipe.stages)
    return recipe
