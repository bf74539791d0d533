"""A Llama-family decoder in Flax NNX that takes its positional scheme as an argument.

Axes: B batch, T tokens, D hidden, H query heads, K key/value heads, d head dimension, F gate, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rope_jax.attention import attention
from rope_jax.decoder import cache as caching
from rope_jax.decoder.cache import Cache
from rope_jax.decoder.config import DecoderConfig
from rope_jax.scheme import Scheme

Schemes = Scheme | Mapping[str, Scheme]


class RmsNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*shape size"]) -> Float[Array, "*shape size"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...].astype(jnp.float32)
        return (normed * weight.reshape((1,) * (x.ndim - 1) + weight.shape)).astype(x.dtype)


class Projection(nnx.Module):
    """An einsum with a kernel, and a bias where the model has one."""

    def __init__(
        self, equation: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, fan_in: int, *, rngs: nnx.Rngs
    ) -> None:
        self.equation = equation
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5)
        self.bias = None if bias is None else nnx.Param(jnp.zeros(bias, jnp.float32))

    def __call__(self, x: Float[Array, "batch tokens ..."]) -> Float[Array, "batch tokens ..."]:
        y = jnp.einsum(self.equation, x, self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            bias = self.bias[...].astype(x.dtype)
            y = y + bias.reshape((1, 1, *bias.shape))
        return y


class Attention(nnx.Module):
    """Grouped-query attention; the scheme turns queries and keys and adds the bias."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        D, H, K, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        q_bias, kv_bias = ((H, d), (K, d)) if config.qkv_bias else (None, None)
        self.q = Projection("BTD,DHd->BTHd", (D, H, d), q_bias, D, rngs=rngs)
        self.k = Projection("BTD,DKd->BTKd", (D, K, d), kv_bias, D, rngs=rngs)
        self.v = Projection("BTD,DKd->BTKd", (D, K, d), kv_bias, D, rngs=rngs)
        self.o = Projection("BTHd,HdD->BTD", (H, d, D), (D,) if config.output_bias else None, H * d, rngs=rngs)
        self.q_norm = RmsNorm(d, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RmsNorm(d, config.rms_norm_eps) if config.qk_norm else None
        self.layer = layer
        self.window = config.windows[layer]

    def __call__(
        self,
        x: Float[Array, "B T D"],
        scheme: Scheme,
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None,
        cache: Cache | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        stored = None
        kv_positions, kv_segments = positions, segments
        if cache is not None:
            k = caching.write_layer(cache.keys[self.layer], k, cache.filled).astype(q.dtype)
            v = caching.write_layer(cache.values[self.layer], v, cache.filled).astype(q.dtype)
            stored = (k, v)
            kv_positions, kv_segments = cache.positions, cache.segments
        out = attention(
            q,
            k,
            v,
            scheme,
            q_positions=positions,
            kv_positions=kv_positions,
            segment_ids=None if segments is None or kv_segments is None else (segments, kv_segments),
            window=self.window,
        )
        return self.o(out), stored


class Mlp(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        D, F = config.hidden_size, config.intermediate_size
        inner, outer = ((F,), (D,)) if config.mlp_bias else (None, None)
        self.gate = Projection("BTD,DF->BTF", (D, F), inner, D, rngs=rngs)
        self.up = Projection("BTD,DF->BTF", (D, F), inner, D, rngs=rngs)
        self.down = Projection("BTF,FD->BTD", (F, D), outer, F, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and a residual."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer, rngs=rngs)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x, scheme: Scheme, positions, segments, cache):
        attended, stored = self.attention(self.attention_norm(x), scheme, positions, segments, cache)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), stored


class Decoder(nnx.Module):
    """A decoder-only language model; nothing in it knows where a token stands until a scheme says so.

    Args:
      config: shapes and switches.
      rngs: for random weights; a loaded checkpoint replaces them.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        shape = (config.vocab_size, config.hidden_size)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * 0.02)
        self.blocks = nnx.List([Block(config, layer, rngs=rngs) for layer in range(config.num_layers)])
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.unembedding = (
            None
            if config.tie_embeddings
            else nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * config.hidden_size**-0.5)
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        scheme: Schemes,
        *,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> Float[Array, "B T V"]:
        """Returns next-token logits, float32.

        Args:
          tokens: token ids.
          scheme: one scheme, or one for each layer type that the config names.
          positions: position of each token; 0, 1, 2, ... where None.
          segments: packed documents: only tokens of one segment attend to each other; negative for padding.
          dtype: of the activations; phases and softmax stay in float32.
        """
        return self.unembed(self.hidden(tokens, scheme, positions=positions, segments=segments, dtype=dtype))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        scheme: Schemes,
        *,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> Float[Array, "B T D"]:
        """Returns the last hidden states, normed; `unembed` makes logits of them. Arguments as in `__call__`."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        x, _ = self._run(tokens, scheme, positions, segments, None, dtype)
        return x

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns float32 logits of hidden states."""
        weights = self.embedding if self.unembedding is None else self.unembedding
        return jnp.einsum("BTD,VD->BTV", x, weights[...].astype(x.dtype)).astype(jnp.float32)

    def extend(
        self,
        cache: Cache,
        tokens: Int[Array, "B T"],
        scheme: Schemes,
        *,
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "B T V"], Cache]:
        """Returns the logits of `tokens` after those in the cache, and the cache with them."""
        segments = jnp.zeros_like(tokens) if segments is None else segments
        cache = caching.append_positions(cache, positions, segments)
        x, stored = self._run(tokens, scheme, positions, segments, cache, dtype)
        keys, values = zip(*stored, strict=True)
        cache = Cache(keys, values, cache.positions, cache.segments, cache.filled)
        return self.unembed(x), cache

    def _run(self, tokens, scheme: Schemes, positions, segments, cache: Cache | None, dtype):
        x = jnp.take(self.embedding[...], tokens, axis=0).astype(dtype)
        stored = []
        for layer, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{layer}"):
                x, kept = block(x, self._scheme_of(scheme, layer), positions, segments, cache)
            stored.append(kept)
        return self.norm(x), stored

    def _scheme_of(self, scheme: Schemes, layer: int) -> Scheme:
        if isinstance(scheme, Scheme):
            return scheme
        name = self.config.layer_types[layer]
        if name not in scheme:
            raise ValueError(f"layer {layer} is of type {name!r}, for which no scheme was given")
        return scheme[name]
