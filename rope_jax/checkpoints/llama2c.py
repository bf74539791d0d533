"""Checkpoints of llama2.c in its first format: seven integers, then float32 weights in a fixed order.

The format says nothing about positions beyond two tables of cosines and sines; the base of 10000 and the norm's
epsilon are constants of its source code. Queries and keys are *interleaved*: dimension 2i pairs with 2i + 1.
"""

import hashlib
from pathlib import Path

import numpy as np

from rope_jax.checkpoints import weights
from rope_jax.checkpoints.checkpoint import Checkpoint
from rope_jax.checkpoints.model_types import FULL
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig, Sourced
from rope_jax.decoder import DecoderConfig
from rope_jax.errors import CheckpointError, UnsupportedError
from rope_jax.frequencies import rotary
from rope_jax.regular_files import check_regular, open_regular
from rope_jax.scaling import none

BASE = 10000.0
EPS = 1e-5
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_HEADER_BYTES = 4 * len(_FIELDS)
_LATER_MAGIC = 0x616B3432  # "ak42": the versioned formats that came after
_TABLE_ERROR = 1e-3  # published tables are float32 cosines of float32 angles


def load(file: str | Path, *, max_bytes: int | None = None) -> Checkpoint:
    """Returns the model in a llama2.c `.bin` file (the legacy format, "version 0").

    Args:
      file: the file.
      max_bytes: most bytes the weights may take; the memory available where None. Checked before anything is made.

    Raises:
      UnsupportedError: for the later, versioned formats.
      CheckpointError: if the header is impossible, the file is not exactly as long as the header makes it, a weight is
        not finite, or the stored tables are not those of base 10000.

    Source: `legacy_export` of export.py and `memory_map_weights` of run.c in karpathy/llama2.c.
    """
    file = Path(file)
    size = check_regular(file, "weights", error=CheckpointError).st_size
    with open_regular(file, "weights", error=CheckpointError) as stream:
        header = stream.read(_HEADER_BYTES)
    config, seq_len = _read_header(header, file, size)
    # The embedding comes with the rest, an output projection after the tables, where there is one.
    tied = 4 * config.num_parameters
    tables = 4 * seq_len * config.head_dim
    needed = _HEADER_BYTES + tied + tables
    if size != needed:
        raise CheckpointError(f"{file}: is {size:,} bytes long, its header makes it {needed:,}")
    weights.check_fits(needed, max_bytes, str(file))
    graph, state = weights.abstract_decoder(config)
    tensors = _split(file, config, seq_len)
    _check_tables(tensors, config, seq_len, file)

    def tensor(path: str) -> np.ndarray:
        if path.startswith("blocks."):
            _, layer, rest = path.split(".", 2)
            value, name = tensors[rest][int(layer)], f"layer {layer} {rest}"
        else:
            value, name = tensors[path], path
        weights.check_finite(value, name, file)
        return value

    tokenizer = file.with_name("tokenizer.json")
    return Checkpoint(
        config=config,
        model=weights.assemble(graph, state, tensor),
        positions=_positions(config, seq_len, file),
        layout="interleaved",
        tokenizer_file=tokenizer if tokenizer.exists() else None,
        sha256=hash_of(file),
        origin=str(file),
    )


def _read_header(header: bytes, file: Path, size: int) -> tuple[DecoderConfig, int]:
    if len(header) < _HEADER_BYTES:
        raise CheckpointError(f"{file}: is too short for a llama2.c header ({len(header)} of {_HEADER_BYTES} bytes)")
    numbers = np.frombuffer(header, "<i4")
    if int(numbers[0]) == _LATER_MAGIC:
        raise UnsupportedError(
            f"{file}: is of a versioned llama2.c format (version {numbers[1]}); only the first is read"
        )
    fields = dict(zip(_FIELDS, (int(number) for number in numbers), strict=True))
    tied = fields["vocab_size"] > 0  # the sign of the vocabulary's size carries this
    fields["vocab_size"] = abs(fields["vocab_size"])
    for name, value in fields.items():
        if value <= 0:
            raise CheckpointError(f"{file}: header field {name} must be positive, got {value}")
    heads, kv_heads, dim = fields["n_heads"], fields["n_kv_heads"], fields["dim"]
    if dim % heads or (dim // heads) % 2:
        raise CheckpointError(f"{file}: header field dim ({dim}) does not give n_heads ({heads}) heads of even size")
    if heads % kv_heads:
        raise CheckpointError(f"{file}: header field n_heads ({heads}) is not a multiple of n_kv_heads ({kv_heads})")
    # A layer holds more bytes than its number: an absurd count is caught before lists of that length are made.
    if fields["n_layers"] > size:
        raise CheckpointError(f"{file}: header field n_layers ({fields['n_layers']}) is more than the file can hold")
    config = DecoderConfig(
        vocab_size=fields["vocab_size"],
        hidden_size=dim,
        intermediate_size=fields["hidden_dim"],
        num_layers=fields["n_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim // heads,
        rms_norm_eps=EPS,
        tie_embeddings=tied,
    )
    return config, fields["seq_len"]


def _split(file: Path, config: DecoderConfig, seq_len: int) -> dict[str, np.ndarray]:
    """Returns views on the file, by our names; those of a layer with a leading layer axis."""
    L, D, F = config.num_layers, config.hidden_size, config.intermediate_size
    q, kv, pairs = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.head_dim // 2
    order = {
        "embedding": (config.vocab_size, D),
        "attention_norm.weight": (L, D),
        "attention.q.kernel": (L, q, D),
        "attention.k.kernel": (L, kv, D),
        "attention.v.kernel": (L, kv, D),
        "attention.o.kernel": (L, D, q),
        "mlp_norm.weight": (L, D),
        "mlp.gate.kernel": (L, F, D),
        "mlp.down.kernel": (L, D, F),
        "mlp.up.kernel": (L, F, D),
        "norm.weight": (D,),
        "cos": (seq_len, pairs),
        "sin": (seq_len, pairs),
    }
    if not config.tie_embeddings:
        order["unembedding"] = (config.vocab_size, D)
    data = np.memmap(file, dtype="<f4", mode="r", offset=_HEADER_BYTES)
    tensors, at = {}, 0
    for name, shape in order.items():
        count = int(np.prod(shape))
        tensors[name] = np.asarray(data[at : at + count]).reshape(shape)
        at += count
    return tensors


def _check_tables(tensors: dict[str, np.ndarray], config: DecoderConfig, seq_len: int, file: Path) -> None:
    theta = rotary(config.head_dim, base=BASE, original_length=seq_len).inverse_frequencies
    angles = np.outer(np.arange(seq_len), theta)
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        weights.check_finite(tensors[name], f"{name} table", file)
        error = float(np.abs(tensors[name] - table).max())
        if error > _TABLE_ERROR:
            raise CheckpointError(f"{file}: its {name} table is {error:.2g} off the one of base {BASE:g}")


def _positions(config: DecoderConfig, seq_len: int, file: Path) -> PositionConfig:
    group = LayerGroup(
        name=FULL,
        layers=tuple(range(config.num_layers)),
        rotary=rotary(config.head_dim, base=BASE, original_length=seq_len),
        rule=none(),
        bias=None,
        window=None,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
    )
    return PositionConfig(
        model_type="llama2.c",
        origin=str(file),
        groups=(group,),
        original_length=seq_len,
        declared_length=seq_len,
        dtype="float32",
        values={
            "rope_theta": Sourced(BASE, "default of llama2.c"),
            "rope_type": Sourced("default", "default of llama2.c"),
            "head_dim": Sourced(config.head_dim, "derived: header dim / n_heads"),
            "max_position_embeddings": Sourced(seq_len, "header seq_len"),
        },
        without_effect={},
        findings=(),
    )


def hash_of(file: Path) -> str:
    """Returns the sha256 of a weight file's bytes."""
    with open_regular(file, "weights", error=CheckpointError) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
