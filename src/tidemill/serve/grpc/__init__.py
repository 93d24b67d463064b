"""Open Inference Protocol v2 over gRPC: another way to the same application."""
