"""The parts of `accelerator.py`."""
