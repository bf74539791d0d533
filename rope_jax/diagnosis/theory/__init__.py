"""What a config alone predicts: positional resolution, thresholds, and the record behind `rope-jax inspect`."""
