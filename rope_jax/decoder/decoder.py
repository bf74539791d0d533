"""A decoder of the Llama or the Gemma family in Flax NNX that takes its positional scheme as an argument.

Axes: B batch, T tokens, D hidden, H query heads, K key/value heads, d head dimension, F gate, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Integer

from rope_jax.attention import decode
from rope_jax.attention.api import outputs
from rope_jax.attention.call import Tokens, checked
from rope_jax.decoder import cache as caching
from rope_jax.decoder import cached_attention
from rope_jax.decoder.arguments import check_dtype, checked_tokens
from rope_jax.decoder.cache import Cache, Cached
from rope_jax.decoder.cached_attention import Schemes, Turns
from rope_jax.decoder.config import DecoderConfig
from rope_jax.scheme import Scheme

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}

# What computes a layer's attention: takes the arguments of `attention.api.attend` and returns what that returns.
Attend = Callable[..., tuple[Array, Array]]


def _residual_sharding(x: Array) -> NamedSharding | None:
    """Returns how the residual stream lies on a mesh with Explicit axes: sharded as the batch of `x`, or None."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0] if sharding.spec else None, None, None))


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
        # Only what goes back to the residual stream may sum over a sharded dimension.
        sharding = _residual_sharding(x) if self.equation.endswith("BTD") else None
        y = jnp.einsum(self.equation, x, self.kernel[...].astype(x.dtype), out_sharding=sharding)
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
        self.scale, self.soft_cap = config.attention_scale, config.attention_soft_cap

    def __call__(
        self,
        x: Float[Array, "B T D"],
        scheme: Scheme,
        tokens: Tokens,
        cache: Cache | None,
        turn: decode.Turn | None,
        fresh: bool,
        attention: Attend | None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array] | None]:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        settings = checked(q, k, v, scheme, window=self.window, scale=self.scale, soft_cap=self.soft_cap)
        if cache is not None:
            out, stored = cached_attention.attend(
                q, k, v, scheme, tokens, cache, self.layer, settings, turn=turn, fresh=fresh
            )
            return self.o(out), stored
        call = q, k, v, scheme, None, tokens, tokens, settings
        out = outputs(*call) if attention is None else attention(*call)[0]
        return self.o(out), None


class Mlp(nnx.Module):
    """Gated MLP: `down(act(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        D, F = config.hidden_size, config.intermediate_size
        inner, outer = ((F,), (D,)) if config.mlp_bias else (None, None)
        self.gate = Projection("BTD,DF->BTF", (D, F), inner, D, rngs=rngs)
        self.up = Projection("BTD,DF->BTF", (D, F), inner, D, rngs=rngs)
        self.down = Projection("BTF,FD->BTD", (F, D), outer, F, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(_ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and a residual; with `post_norms` their results are normed too."""

    def __init__(self, config: DecoderConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer, rngs=rngs)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config, rngs=rngs)
        after = config.post_norms
        self.attention_post_norm = RmsNorm(config.hidden_size, config.rms_norm_eps) if after else None
        self.mlp_post_norm = RmsNorm(config.hidden_size, config.rms_norm_eps) if after else None

    def __call__(
        self, x, scheme: Scheme, tokens: Tokens, cache: Cache | None, turn, fresh: bool, attention: Attend | None
    ):
        attended, stored = self.attention(self.attention_norm(x), scheme, tokens, cache, turn, fresh, attention)
        x = x + (attended if self.attention_post_norm is None else self.attention_post_norm(attended))
        mixed = self.mlp(self.mlp_norm(x))
        return x + (mixed if self.mlp_post_norm is None else self.mlp_post_norm(mixed)), stored


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
        tokens: Integer[Array | np.ndarray, "B T"],
        scheme: Schemes,
        *,
        positions: Integer[Array | np.ndarray, "B T"] | None = None,
        segments: Integer[Array | np.ndarray, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> Float[Array, "B T V"]:
        """Returns next-token logits, float32.

        Args:
          tokens: token ids, integers of any width. Under `jit`, where their values are not known, the embedding of one
            outside of the vocabulary is NaN, and so is all that sees it.
          scheme: one scheme, or one for each layer type that the config names.
          positions: position of each token; 0, 1, 2, ... where None.
          segments: packed documents: only tokens of one segment attend to each other; negative for padding.
          dtype: of the activations; phases and softmax stay in float32.

        Raises:
          TypeError: if tokens, positions or segments are not integers.
          ValueError: if their shapes differ, or a known id that is not padding is outside of the vocabulary.
        """
        return self.unembed(self.hidden(tokens, scheme, positions=positions, segments=segments, dtype=dtype))

    def hidden(
        self,
        tokens: Integer[Array | np.ndarray, "B T"],
        scheme: Schemes,
        *,
        positions: Integer[Array | np.ndarray, "B T"] | None = None,
        segments: Integer[Array | np.ndarray, "B T"] | None = None,
        attention: Attend | None = None,
        dtype=jnp.float32,
    ) -> Float[Array, "B T D"]:
        """Returns the last hidden states, normed; `unembed` makes logits of them. Errors as in `__call__`.

        Args:
          tokens: as in `__call__`.
          scheme: as in `__call__`.
          positions: as in `__call__`.
          segments: as in `__call__`.
          attention: computes every layer's attention, with the arguments of `attention.api.attend`; for looking into a
            model, or running it with a fault. None for outputs alone, which more implementations give.
          dtype: of the activations.
        """
        ids, at = checked_tokens(self.config, tokens, positions, segments)
        x, _ = self._run(ids, scheme, at, None, None, False, dtype, attention)
        return x

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns float32 logits of hidden states."""
        weights = self.embedding if self.unembedding is None else self.unembedding
        logits = jnp.einsum("BTD,VD->BTV", x, weights[...].astype(x.dtype)).astype(jnp.float32)
        cap = self.config.output_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def extend(
        self,
        cache: Cache,
        tokens: Integer[Array | np.ndarray, "B T"],
        scheme: Schemes,
        *,
        positions: Integer[Array | np.ndarray, "B T"],
        segments: Integer[Array | np.ndarray, "B T"] | None = None,
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "B T V"], Cache]:
        """Returns the logits of `tokens` after those in the cache, and the cache with them.

        Up to 16 tokens a sequence go through `attention.decode`, more through `attention.attention`; a prompt in chunks
        gives what it gives at once.

        Args:
          cache: what came before; its rotated keys, if they are rotated, must have been turned by `scheme`.
          tokens: token ids.
          scheme: one scheme, or one for each layer type that the config names.
          positions: position of each token.
          segments: 0 where None; negative for padding, whose slots stay unseen.
          dtype: of the activations.

        Raises:
          ValueError: if the tokens do not fit into the cache; and as in `__call__`.
        """
        x, cache = self.advance(cache, tokens, scheme, positions=positions, segments=segments, dtype=dtype)
        return self.unembed(x), cache

    def advance(
        self,
        cache: Cache,
        tokens: Integer[Array | np.ndarray, "B T"],
        scheme: Schemes,
        *,
        positions: Integer[Array | np.ndarray, "B T"],
        segments: Integer[Array | np.ndarray, "B T"] | None = None,
        turns: Turns | None = None,
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Returns what `extend` does with the last hidden states, normed, in place of logits.

        Args:
          cache: as in `extend`.
          tokens: as in `extend`.
          scheme: as in `extend`.
          positions: as in `extend`.
          segments: as in `extend`.
          turns: cos and sin at every slot of an unrotated cache, new tokens included, if the caller keeps them; worked
            out once for all layers where None.
          dtype: of the activations.
        """
        fresh = not isinstance(cache.filled, jax.core.Tracer) and int(cache.filled) == 0
        ids, at = checked_tokens(self.config, tokens, positions, segments, one_segment=True)
        cache = caching.append_positions(cache, at.positions, at.segments)
        if turns is None and cache.cached == "unrotated" and ids.shape[1] <= decode.QUERIES:
            turns = cached_attention.turns_of(scheme, cache.positions)
        return self._fill(cache, ids, scheme, at, turns, fresh, dtype)

    def prefill(
        self,
        tokens: Integer[Array | np.ndarray, "B T"],
        scheme: Schemes,
        *,
        capacity: int,
        positions: Integer[Array | np.ndarray, "B T"] | None = None,
        segments: Integer[Array | np.ndarray, "B T"] | None = None,
        cached: Cached = "unrotated",
        dtype=jnp.float32,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Returns the last hidden states of a prompt, normed, and a new cache with it.

        Args:
          tokens: token ids.
          scheme: one scheme, or one for each layer type that the config names.
          capacity: tokens a sequence that the cache has room for.
          positions: position of each token; 0, 1, 2, ... where None.
          segments: 0 where None; negative for padding.
          cached: whether the cache holds "unrotated" or "rotated" keys.
          dtype: of activations and cache.

        Raises:
          ValueError: if the tokens do not fit; and as in `__call__`.
        """
        ids, at = checked_tokens(self.config, tokens, positions, segments, one_segment=True)
        cache = caching.empty_cache(self.config, batch=ids.shape[0], capacity=capacity, dtype=dtype, cached=cached)
        cache = caching.append_positions(cache, at.positions, at.segments)
        return self._fill(cache, ids, scheme, at, None, True, dtype)

    def _fill(self, cache: Cache, tokens, scheme: Schemes, at: Tokens, turns, fresh: bool, dtype):
        x, stored = self._run(tokens, scheme, at, cache, turns, fresh, dtype)
        keys, values = zip(*stored, strict=True)
        return x, dataclasses.replace(cache, keys=keys, values=values)

    def _run(self, tokens, scheme: Schemes, at: Tokens, cache: Cache | None, turns, fresh: bool, dtype, attention=None):
        check_dtype(dtype)
        # A compiled program cannot raise: an id outside of the vocabulary is made visible, not taken for another.
        rows = (
            self.embedding[...]
            .at[tokens]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=_residual_sharding(tokens))
        )
        x = rows.astype(dtype)
        if self.config.embedding_scale != 1:
            x = x * jnp.asarray(self.config.embedding_scale, dtype)
        stored = []
        for layer, block in enumerate(self.blocks):
            turn = turns[self.config.layer_types[layer]] if isinstance(turns, Mapping) else turns
            with jax.named_scope(f"block_{layer}"):
                x, kept = block(x, self._scheme_of(scheme, layer), at, cache, turn, fresh, attention)
            stored.append(kept)
        return self.norm(x), stored

    def _scheme_of(self, scheme: Schemes, layer: int) -> Scheme:
        if isinstance(scheme, Scheme):
            return scheme
        name = self.config.layer_types[layer]
        if name not in scheme:
            raise ValueError(f"layer {layer} is of type {name!r}, for which no scheme was given")
        return scheme[name]
