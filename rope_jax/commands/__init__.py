"""The `rope-jax` command, one module a subcommand."""
