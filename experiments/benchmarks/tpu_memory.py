"""The TPU attention kernel compiled ahead of time for real topologies, without a TPU: what memory it asks for.

Expected: beside arguments and outputs, forward and backward take a fixed number of bytes a token, with any bias; one
head's logits at 131,072 tokens alone would be 64 GiB. Needs `pip install libtpu`; about ten seconds a row on two cores.

    python experiments/benchmarks/tpu_memory.py
"""

import importlib.util
import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPUs are only described, never looked for
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs on a TPU, so a process that holds one may
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.experimental import topologies

from rope_jax import biases
from rope_jax.attention import pallas_tpu
from rope_jax.attention.call import Settings, Tokens
from rope_jax.frequencies import rotary
from rope_jax.scheme import Scheme, build

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "What to compile for.")
_LENGTHS = flags.DEFINE_list("lengths", ["8192", "32768", "131072"], "Tokens.")
_BIASES = flags.DEFINE_list("biases", ["none", "alibi", "t5"], "Among none, alibi, t5.")
_HEADS = flags.DEFINE_integer("heads", 32, "Query heads.")
_KV_HEADS = flags.DEFINE_integer("kv_heads", 8, "Key heads.")
_DIM = flags.DEFINE_integer("dim", 128, "Dimensions of a head.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")

_MIB = 2**20


def main(argv: list[str]) -> None:
    """Compiles forward and backward for every topology, length and bias, and prints their memory."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"tpu_memory.py takes no arguments, got {argv[1:]}")
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("tpu_memory.py compiles with libtpu, which is not installed: pip install libtpu")
    unknown = set(_BIASES.value) - {"none", "alibi", "t5"}
    if unknown:
        sys.exit(f"--biases must be among none, alibi, t5, got {sorted(unknown)}")
    if not _JSON.value:
        print(f"{_HEADS.value} heads over {_KV_HEADS.value}, d = {_DIM.value}, bfloat16, causal, jax {jax.__version__}")
        print("MiB beside one another: arguments, outputs, and what the program needs in between (temporary)")
        print(f"{'topology':>10}{'tokens':>9}{'bias':>7}{'pass':>10}{'arg':>7}{'out':>7}{'temp':>7}", end="")
        print(f"{'temp a token':>14}{'one head N x N':>16}{'compile':>9}")
    records = []
    for topology in _TOPOLOGIES.value:
        device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        for tokens in map(int, _LENGTHS.value):
            for bias in _BIASES.value:
                for backward in (False, True):
                    record = _compile(device, tokens, bias, backward=backward)
                    records.append({"topology": topology, **record})
                    if not _JSON.value:
                        _print_row(records[-1])
    if _JSON.value:
        setting = {"heads": _HEADS.value, "kv_heads": _KV_HEADS.value, "dim": _DIM.value, "jax": jax.__version__}
        print(json.dumps({**setting, "dtype": "bfloat16", "rows": records}))


def _scheme(bias: str) -> Scheme:
    heads, dim = _HEADS.value, _DIM.value
    added = {
        "none": lambda: None,
        "alibi": lambda: biases.alibi_paper(heads),
        "t5": lambda: biases.t5_bias(jnp.zeros((heads, 32)), max_distance=128),
    }[bias]()
    return build(rotary(dim, base=1e4, original_length=4096), added, num_heads=heads, head_dim=dim)


def _compile(device, tokens: int, bias: str, *, backward: bool) -> dict:
    """Compiles one program for `device` and returns its sizes in bytes."""
    settings = Settings(scale=_DIM.value**-0.5)

    def forward(q, k, v, scheme, positions):
        stand = Tokens(positions)
        return pallas_tpu.attend_with(q, k, v, scheme, None, stand, stand, settings)[0]

    def gradients(q, k, v, scheme, positions, d_out):
        return jax.vjp(lambda *differentiated: forward(*differentiated, positions), q, k, v, scheme)[1](d_out)

    sharding = jax.sharding.SingleDeviceSharding(device)
    abstract = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    q, k = (abstract((1, tokens, heads, _DIM.value), jnp.bfloat16) for heads in (_HEADS.value, _KV_HEADS.value))
    scheme = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), _scheme(bias))
    arguments = (q, k, k, scheme, abstract((1, tokens), jnp.int32))
    start = time.perf_counter()
    if backward:
        compiled = jax.jit(gradients).lower(*arguments, q).compile()
    else:
        compiled = jax.jit(forward).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return {
        "tokens": tokens,
        "bias": bias,
        "pass": "fwd+bwd" if backward else "forward",
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "dense_logits_bytes": 4 * tokens * tokens,
        "compile_seconds": time.perf_counter() - start,
    }


def _print_row(record: dict) -> None:
    mib = (record[name] / _MIB for name in ("argument_bytes", "output_bytes", "temporary_bytes"))
    print(f"{record['topology']:>10}{record['tokens']:>9,}{record['bias']:>7}{record['pass']:>10}", end="")
    print("".join(f"{size:>7,.0f}" for size in mib), end="")
    print(f"{record['temporary_bytes'] / record['tokens'] / 1024:>10.1f} KiB", end="")
    print(f"{record['dense_logits_bytes'] / _MIB:>12,.0f} MiB{record['compile_seconds']:>7.0f} s", flush=True)


if __name__ == "__main__":
    app.run(main)
