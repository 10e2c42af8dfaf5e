"""Handwritten digits on a laptop: the whole of DIDR, on real images, in minutes."""
