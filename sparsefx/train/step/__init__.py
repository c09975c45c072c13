"""One step of training: the loss of a batch, whole or in parts, in one process or several."""
