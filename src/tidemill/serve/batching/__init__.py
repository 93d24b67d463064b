"""Rows of several callers through a model at once: on the event loop where it is quick, else by runners of a queue."""
