"""What a config alone says about a retrofit: the record behind `rope-jax inspect`, as a table and as a picture."""
