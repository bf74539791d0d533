"""Writes one layer's own queries, keys and values of a real model, for the row of attention.py on trained weights.

    python experiments/benchmarks/trained.py CHECKPOINT TOKENS.npy LENGTH LAYER OUT.npz

Queries and keys are turned by the scheme that the checkpoint's config declares, and keys and values repeated to one a
query head, so that every contender gets the same arrays.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.attention.call import Tokens
from rope_jax.checkpoints.checkpoint import schemes_of
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.scheme import Scheme


def main(checkpoint: str, text: str, length: int, layer: int, out: str) -> None:
    """Writes `q`, `k` and `v`, each `[1, length, heads, dim]`."""
    model_on_disk = load_checkpoint(checkpoint)
    model, config = model_on_disk.model, model_on_disk.config
    stored = np.load(text).reshape(-1)
    if stored.size < length:
        sys.exit(f"{text} holds {stored.size} tokens, {length} are needed")
    if not -config.num_layers <= layer < config.num_layers:
        sys.exit(f"the model has {config.num_layers} layers; there is no layer {layer}")
    tokens = jnp.asarray(stored[:length][None], jnp.int32)
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    schemes = schemes_of(model_on_disk, length=length)
    number = layer % config.num_layers

    def scheme_of(at: int) -> Scheme:
        return schemes if isinstance(schemes, Scheme) else schemes[config.layer_types[at]]

    @jax.jit
    def arrays(tokens, positions):
        x = jnp.take(model.embedding[...], tokens, axis=0).astype(jnp.float32)
        for at, block in enumerate(model.blocks[:number]):
            x, _ = block(x, scheme_of(at), Tokens(positions), None, None, False)
        block = model.blocks[number]
        attention, x = block.attention, block.attention_norm(x)
        q, k, v = attention.q(x), attention.k(x), attention.v(x)
        if attention.q_norm is not None and attention.k_norm is not None:
            q, k = attention.q_norm(q), attention.k_norm(k)
        scheme = scheme_of(number)
        groups = config.num_heads // config.num_kv_heads
        k, v = (jnp.repeat(x, groups, axis=2) for x in (scheme.rotate(k, positions), v))
        return scheme.rotate(q, positions), k, v

    q, k, v = (np.asarray(x) for x in arrays(tokens, positions))
    np.savez(out, q=q, k=k, v=v)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit("trained.py takes CHECKPOINT TOKENS.npy LENGTH LAYER OUT.npz")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
