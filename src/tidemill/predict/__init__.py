"""Batch prediction: files in, Parquet out, every row exactly once."""
