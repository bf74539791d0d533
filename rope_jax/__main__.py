"""Runs the command: `python -m rope_jax`."""

from rope_jax.cli import process

process()
