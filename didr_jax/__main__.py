"""`python -m didr_jax`: the same command line as run.py and didr-jax."""

from didr_jax.cli import main

if __name__ == "__main__":
    main()
