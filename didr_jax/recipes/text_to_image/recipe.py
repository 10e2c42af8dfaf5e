"""Every backbone's recipe: the task, what it reports, and its outline for plans, put together."""

from didr_jax.recipes.text_to_image import report
from didr_jax.recipes.text_to_image.outline import Outline
from didr_jax.recipes.text_to_image.task import TextToImage
from didr_jax.training.loop import Recipe


def text_to_image(config, make_backbone) -> Recipe:
    """The recipe of a backbone."""
    task = TextToImage(config, make_backbone)
    return Recipe(
        stages={"align": task.align},
        figures=lambda products: report.figures(task, products),
        evaluate=lambda products, workdir, log: report.evaluate(task, products, workdir, log),
        sample=lambda products, workdir, log: report.sample(task, products, workdir, log),
        check=task.check,
        export=lambda products, workdir, log: report.export(task, products, workdir, log),
        score=lambda workdir, log: task.score_images(workdir),
        outline=lambda: Outline(config, make_backbone).align({}),
    )
