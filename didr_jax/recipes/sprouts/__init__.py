"""Potted plants with faces, of which every part is known: a whole text-to-image pipeline that a laptop can train."""
