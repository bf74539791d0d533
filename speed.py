import sys

sys.path.insert(0, "experiments")
import time

import curriculum as C
import jax
import jax.numpy as jnp
import numpy as np
from curriculum import *
from flax import nnx
from rope_jax.subjects import haystacks as hay

from rope_jax import frequencies
from rope_jax.attention.api import attend
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import build


def dense(q, k, v, scheme, sinks, queries, keys, settings, implementation=None):
    pos = queries.positions if hasattr(queries, "positions") else None
    T = q.shape[1]
    at = jnp.arange(T, dtype=jnp.int32)
    q = scheme.rotate(q, at[None])
    k = scheme.rotate(k, at[None])
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5)
    s = jnp.where(at[:, None] >= at[None], s, -1e30)
    p = jax.nn.softmax(s, -1)
    return jnp.einsum("bhqk,bkhd->bqhd", p, v), None


for layers, width, heads in ((4, 128, 4), (3, 128, 4)):
    cfg = DecoderConfig(
        hay.VOCAB_SIZE, width, 2 * width, layers, heads, heads, width // heads, 1e-5, tie_embeddings=True
    )
    model = Decoder(cfg, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    sch = build(
        frequencies.rotary(width // heads, base=100.0, original_length=128), num_heads=heads, head_dim=width // heads
    )
    for T in (112, 256):
        rows = 5376 // T
        rng = np.random.default_rng(0)
        tok, kinds = batch_of(rng, C.Phase((T,), 5376, 128, 0.2, 1, counts=(asked_of(1),)), T)
        for name, att in (("lib", attend), ("dense", dense)):

            def loss(state):
                pass
                m = nnx.merge(graph, state)
                lg = m.unembed(m.hidden(tok, sch, attention=att))[:, :-1]
                l = -jnp.take_along_axis(jax.nn.log_softmax(lg), tok[:, 1:, None], -1)[..., 0]
                return (l * (kinds > 0)).sum() / (kinds > 0).sum()

            f = jax.jit(jax.value_and_grad(loss))
            try:
                v, g = f(state)
                jax.block_until_ready(g)
            except TypeError as e:
                print(e)
                break
            t = time.time()
            for _ in range(5):
                v, g = f(state)
                jax.block_until_ready(g)
            print(layers, width, T, name, (time.time() - t) / 5, float(v), flush=True)
