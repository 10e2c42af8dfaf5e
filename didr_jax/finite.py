"""Whether host arrays hold only finite values, at the speed of reading them."""

import jax.numpy as jnp
import numpy as np

# Of the narrow types, whose own test is slow: the bits of the exponent.  All of them set is an infinity or a nan.
_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00}
_AT_ONCE = 2**20  # entries: temporaries of a few megabytes, whatever the array's size


def all_finite(values: np.ndarray) -> bool:
    """Whether no entry of a contiguous array, of any shape and type, is an infinity or a nan."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return True
    flat, mask = values.reshape(-1), _EXPONENT.get(values.dtype.name)
    pieces = (flat[i : i + _AT_ONCE] for i in range(0, flat.size, _AT_ONCE))
    if mask is None:
        return all(np.isfinite(piece).all() for piece in pieces)
    return not any((piece.view(np.uint16) & mask == mask).any() for piece in pieces)
