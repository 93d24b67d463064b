"""Rows to training steps: the same rows in the same steps for any number of ranks and workers, from any step on."""
