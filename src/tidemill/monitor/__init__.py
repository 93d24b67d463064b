"""Watching what is served: drift of inputs and answers, quality once the truth is known."""
