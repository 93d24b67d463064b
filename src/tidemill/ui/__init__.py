"""Pages and terminal output: what people see of a run."""
