"""Without the peers installed, a module here that needs them is not collected for its doctests."""

import importlib.util

if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    collect_ignore = ["causal_defaults.py"]
