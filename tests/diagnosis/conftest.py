"""Puts what the tests of all rooms share, `cases.py`, within their reach."""
