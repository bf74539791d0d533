"""Weights into a decoder: a tensor for every parameter, each looked at, and the size known before anything is made."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.decoder.decoder import Block
from rope_jax.errors import CheckpointError

Shape = tuple[int, ...]
# What nnx.split gives, a GraphDef and a State: generic types that a checker of annotations warns about.
Graph = Any
State = Any


def abstract_decoder(config: DecoderConfig) -> tuple[Graph, State]:
    """Returns the decoder's graph and the shapes of its parameters; nothing is allocated or drawn at random."""
    # Tracing takes time that grows with the square of what is traced at once, so it is done layer by layer.
    bare = dataclasses.replace(config, num_layers=0, layer_types=(), windows=())
    decoder = nnx.eval_shape(lambda: Decoder(bare, rngs=nnx.Rngs(0)))

    def block(layer: int) -> Block:
        return Block(config, layer, rngs=nnx.Rngs(0))

    layers = range(config.num_layers)
    decoder.blocks = nnx.List([nnx.eval_shape(functools.partial(block, layer)) for layer in layers])
    decoder.config = config
    return nnx.split(decoder)


def path_of(keys: tuple) -> str:
    """Returns a parameter's dotted path (`blocks.0.attention.q.kernel`) from its key path in the state."""
    return ".".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def published_shapes(state: State) -> dict[str, Shape]:
    """Returns each parameter's shape as checkpoints store it: projections as one matrix `[out, in]`, biases flat."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {path_of(keys): _published_shape(path_of(keys), leaf.shape) for keys, leaf in leaves}


def _published_shape(path: str, shape: Shape) -> Shape:
    if path.endswith(".kernel"):
        inputs = 2 if path.endswith(".o.kernel") else 1  # attention's output projection reads heads and dimensions
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return (math.prod(shape),) if path.endswith(".bias") else shape


def assemble(graph: Graph, state: State, tensor: Callable[[str], np.ndarray]) -> Decoder:
    """Returns the decoder whose parameters are `tensor(path)`, each in its own dtype.

    Args:
      graph: from `abstract_decoder`.
      state: from `abstract_decoder`.
      tensor: gives a parameter as stored (see `published_shapes`), on the host; called once a parameter.
    """

    def fill(keys: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        path = path_of(keys)
        stored = tensor(path)
        ours = stored.T.reshape(leaf.shape) if path.endswith(".kernel") else stored.reshape(leaf.shape)
        # A copy in any case: what the host holds may be a window on a file.
        return jnp.array(ours)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def check_finite(tensor: np.ndarray, name: str, file: Path) -> None:
    """Raises `CheckpointError` naming the tensor and file if a value is NaN or infinite."""
    finite = np.isfinite(tensor)
    if not finite.all():
        bad = int(tensor.size - finite.sum())
        what = "NaN" if np.isnan(tensor).any() else "infinite"
        raise CheckpointError(f"{file}: tensor {name!r} holds {bad} values that are not finite (among them {what})")


def check_fits(needed: int, max_bytes: int | None, what: str) -> None:
    """Raises `CheckpointError` if `needed` bytes are more than `max_bytes` (None: than memory is available)."""
    limit = available_bytes() if max_bytes is None else max_bytes
    if needed > limit:
        source = "available" if max_bytes is None else "allowed by max_bytes"
        raise CheckpointError(f"{what} needs {needed:,} bytes of weights, and {limit:,} are {source}")


def available_bytes() -> int:
    """Returns the memory that can be had without swapping, in bytes; all there is where the system does not say."""
    try:
        # What sysconf calls available leaves out the page cache, which is full of the very file just downloaded.
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parameters_of(config: DecoderConfig, num_layers: int) -> int:
    """Returns how many weights `config` has with `num_layers` layers, `config` itself being of one layer."""
    bare = config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2) + config.hidden_size
    return bare + num_layers * (config.num_parameters - bare)
