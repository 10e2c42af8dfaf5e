"""Trains, samples or evaluates a recipe:  python run.py --config=configs/digits.py --workdir=DIR"""

from didr_jax.cli import main

if __name__ == "__main__":
    main()
