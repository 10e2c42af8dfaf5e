"""Names of AutoencoderTiny's tensors; those of its encoder have no use here."""

from didr_jax.weights.rules import ignore, layer

TINY_VAE_TABLE = [
    *layer(r"decoder.layers.(\d+)", "layers_{}"),
    *layer(r"decoder.layers.(\d+).conv.(\d+)", "layers_{}/conv_{}"),
    *ignore("encoder.(.+)"),
]
