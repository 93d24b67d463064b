"""DuckDB and Arrow on this machine: the complete engine."""
