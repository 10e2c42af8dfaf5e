"""What pyproject.toml cannot say: every package below didr_jax with the template of report.html and the weights of sprouts, and the recipe
files of configs/ as didr_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["didr_jax", "didr_jax.*"]), "didr_jax.configs"],
    package_dir={"didr_jax.configs": "configs"},
    package_data={"didr_jax": ["reporting/template/*", "assets/**/*"]},
)
