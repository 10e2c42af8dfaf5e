"""How networks are trained: steps, stages, the loop, devices, checkpoints, logs."""
