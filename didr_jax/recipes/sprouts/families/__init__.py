"""Families of text-to-image pipelines, each in a small form that sprouts can be trained in."""
