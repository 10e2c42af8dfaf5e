"""Diff-Instruct with Diffused Reward: preference alignment of one-step generators in JAX."""
