"""The recipes by name: each builds, from a config, the stages that it trains and how it is judged."""

from collections.abc import Callable

from didr_jax.checks import require_choice
from didr_jax.recipes.digits.recipe import digits
from didr_jax.recipes.mixture import mixture
from didr_jax.recipes.text_to_image.recipe import text_to_image
from didr_jax.recipes.text_to_image.stable_diffusion import stable_diffusion
from didr_jax.recipes.text_to_image.zimage import zimage
from didr_jax.training.loop import Recipe

RECIPES: dict[str, Callable[..., Recipe]] = {
    "digits": digits,
    "mixture": mixture,
    "stable_diffusion": lambda config: text_to_image(config, stable_diffusion),
    "zimage": lambda config: text_to_image(config, zimage),
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
