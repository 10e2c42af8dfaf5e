"""Latent text-to-image models, aligned from a diffusers folder: one task, a backbone a family."""
