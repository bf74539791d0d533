"""Runs the command: `python -m rope_jax`."""

import sys

from rope_jax.cli import main

sys.exit(main())
