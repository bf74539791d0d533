"""Attention that carries positions: rotation, bias, masks, behind one function."""

from rope_jax.attention.api import attention

__all__ = ["attention"]
