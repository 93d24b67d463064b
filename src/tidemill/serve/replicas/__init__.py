"""Several processes that answer on one port: started, watched, counted and changed together."""
