"""Tokens a second after a long context, against transformers with the same weights and its own cache, float32.

    python experiments/benchmarks/decode.py [--length=32768] [--batches=1,8] [--steps=8] [--out=FILE.json]

transformers writes a small Llama checkpoint to a temporary directory and both libraries load it. Reading a long prompt
would take transformers minutes, so both caches are filled with the same random keys and values, turned by each
library itself; the logits of the next token must agree. transformers makes tokens in a plain greedy loop over its
`DynamicCache`, ours in `continue_from`, once from rotated and once from unrotated keys.
"""

import sys
import tempfile
from typing import Literal

import interleaved
import report
from absl import app, flags, logging
from interleaved import Contender, Race, ratio
from report import Row
from worker import Prepared

_LENGTH = flags.DEFINE_integer("length", 32768, "Tokens in the cache.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Sequences.")
_STEPS = flags.DEFINE_integer("steps", 8, "Tokens made a run.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_HIDDEN = flags.DEFINE_integer("hidden", 512, "Width; heads have 64 dimensions, four query heads share a key head.")
_RUNS = flags.DEFINE_integer("runs", 7, "Interleaved timed rounds.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of weights, keys and values; a fresh one where absent.")
_QUICK = flags.DEFINE_boolean("quick", False, "One layer, 512 tokens and one round: shows that everything runs.")
_OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")

_VOCABULARY, _HEAD_DIM, _GROUP = 4096, 64, 4
_KEY_SIZE = 4.0  # of a random key's entries: large enough that few keys take most of the weight
_GOAL = 3.0


def main(argv: list[str]) -> None:
    """Prints tokens a second of both libraries and their ratio."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"decode.py takes no arguments, got {argv[1:]}")
    if not all(x.isdigit() and int(x) > 0 for x in _BATCHES.value):
        sys.exit("--batches takes positive whole numbers, separated by commas")
    if (
        _HIDDEN.value % (_GROUP * _HEAD_DIM)
        or min(_HIDDEN.value, _LAYERS.value, _RUNS.value, _STEPS.value, _LENGTH.value) < 1
    ):
        sys.exit(f"--hidden must be a multiple of {_GROUP * _HEAD_DIM}; layers, runs, steps and length at least 1")
    seed = interleaved.fresh_seed() if _SEED.value is None else _SEED.value
    layers, rounds, length = (1, 1, 512) if _QUICK.value else (_LAYERS.value, _RUNS.value, _LENGTH.value)
    rows, races = [], []
    with tempfile.TemporaryDirectory() as directory:
        shape = {"directory": directory, "hidden": _HIDDEN.value, "layers": layers, "seed": seed}
        shape |= {"length": length, "steps": _STEPS.value}
        contenders = [
            Contender("transformers", "decode:theirs", shape),
            Contender("ours, rotated", "decode:ours", {**shape, "cached": "rotated"}),
            Contender("ours, unrotated", "decode:ours", {**shape, "cached": "unrotated"}),
        ]
        for batch in map(int, _BATCHES.value):
            with Race(contenders) as race:  # fresh processes, so that the last batch's memory is given back
                results = race.run({"batch": batch}, rounds=rounds)
            rows += [_row(results, contender.name, batch, length) for contender in contenders[1:]]
            if not _JSON.value:
                print(report.times(f"\n{_STEPS.value} tokens after {length:,}, batch {batch}", results))
            races.append(({"batch": batch, "length": length}, results))
    settings = {"seed": seed, "runs": rounds, "layers": layers, "hidden": _HIDDEN.value, "steps": _STEPS.value}
    report.finish(rows, races, settings, out=_OUT.value, as_json=_JSON.value)


def _row(results, name: str, batch: int, length: int) -> Row:
    note = report.why(results, name, "transformers")
    measured = float("nan") if note else ratio(results, "transformers", name)
    if not note:
        apart = interleaved.difference(results, name, "transformers")
        speeds = [batch * _STEPS.value / results[one].seconds for one in (name, "transformers")]
        note = "{:.0f} and {:.1f} tokens/s; logits differ by {:.0e} of the largest".format(*speeds, apart["logits"])
    return Row(f"decode, batch {batch}, {name}", "transformers", length, _HEAD_DIM, measured, at_least=_GOAL, note=note)


def theirs(*, directory: str, hidden: int, layers: int, seed: int, length: int, steps: int, batch: int) -> Prepared:
    """Returns transformers' greedy loop; writes the checkpoint first, so that it must be prepared before `ours`."""
    import pathlib

    import torch
    import transformers
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not (pathlib.Path(directory) / "config.json").exists():
        torch.manual_seed(seed % 2**63)
        heads = hidden // _HEAD_DIM
        config = transformers.LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=hidden,
            intermediate_size=8 * hidden // 3 // 32 * 32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // _GROUP,
            max_position_embeddings=2 * length,
            tie_word_embeddings=False,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    cache = transformers.DynamicCache(config=model.config)
    filled = 0
    with torch.no_grad():
        positions = torch.arange(length)[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1), positions)
        for layer in range(layers):
            k, v = (torch.from_numpy(x) for x in _keys_and_values(layer, batch, hidden, length, seed))
            k, _ = apply_rotary_pos_emb(k, k, cos, sin)
            cache.update(k, v, layer)
            filled += k.nbytes + v.nbytes
            del k, v
    first = torch.from_numpy(_first(batch, seed)).long()

    def step(tokens, position: int):
        positions = torch.full((batch, 1), position)
        return model(tokens[:, None], past_key_values=cache, use_cache=True, position_ids=positions).logits[:, 0]

    def run():
        with torch.no_grad():
            tokens, made = first, []
            for n in range(steps):
                tokens = step(tokens, length + n).argmax(-1)
                made.append(tokens)
            cache.crop(-steps)
        return torch.stack(made, 1)

    def to_numpy(_):
        with torch.no_grad():
            logits = step(first, length)
            cache.crop(-1)
        return {"logits": logits.numpy()}

    return Prepared(
        run=run,
        to_numpy=to_numpy,
        input_bytes=filled,
        output_bytes=8 * batch * steps,
        notes=lambda: {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}},
    )


def ours(
    *,
    directory: str,
    hidden: int,
    layers: int,
    seed: int,
    length: int,
    steps: int,
    batch: int,
    cached: Literal["rotated", "unrotated"],
) -> Prepared:
    """Returns this library's `continue_from` on the checkpoint in `directory`."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from rope_jax.checkpoints.checkpoint import schemes_of
    from rope_jax.checkpoints.loading import load_checkpoint
    from rope_jax.decoder import continue_from, empty_cache

    checkpoint = load_checkpoint(directory)
    model, scheme = checkpoint.model, schemes_of(checkpoint)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (batch, length))

    @jax.jit
    def as_cached(k, scheme):
        turned = scheme.rotate(jnp.moveaxis(k, 2, 1), positions) if cached == "rotated" else jnp.moveaxis(k, 2, 1)
        return jnp.pad(jnp.moveaxis(turned, 1, 3), ((0, 0), (0, 0), (0, 0), (0, steps)))

    keys, values = [], []
    for layer in range(layers):
        k, v = _keys_and_values(layer, batch, hidden, length, seed)
        keys.append(as_cached(k, _of_layer(scheme, checkpoint.config, layer)))
        values.append(jnp.asarray(np.pad(v, ((0, 0), (0, 0), (0, steps), (0, 0)))))
        del k, v
    empty = empty_cache(model.config, batch=batch, capacity=length + steps, cached=cached)
    bounds = np.zeros((2, batch, length + steps), np.int32)
    bounds[0, :, :length], bounds[1, :, length:] = np.asarray(positions), -1
    kept = [dataclasses.replace(empty, keys=tuple(keys), values=tuple(values))]
    del keys, values, empty
    first, lengths = jnp.asarray(_first(batch, seed), jnp.int32), jnp.full((batch,), length, jnp.int32)

    def rewound():
        return dataclasses.replace(
            kept.pop(), positions=jnp.array(bounds[0]), segments=jnp.array(bounds[1]), filled=jnp.int32(length)
        )

    def run():
        made, cache = continue_from(model, scheme, rewound(), first, lengths, max_new_tokens=steps)
        kept.append(cache)
        return jax.block_until_ready(made)

    graph, weights = nnx.split(model)

    def step(cache, weights, scheme):
        return nnx.merge(graph, weights).extend(cache, first[:, None], scheme, positions=lengths[:, None])

    def to_numpy(_):
        # transformers forms angles in float32; so that the logits can be compared, this once ours do.
        like_theirs = jax.tree.map(
            lambda one: dataclasses.replace(one, phase="float32"), scheme, is_leaf=lambda x: hasattr(x, "phase")
        )
        logits, cache = jax.jit(step, donate_argnums=0)(rewound(), weights, like_theirs)
        kept.append(cache)
        return {"logits": np.asarray(logits[:, 0])}

    return Prepared(
        run=run,
        to_numpy=to_numpy,
        input_bytes=sum(x.nbytes for x in jax.tree.leaves(kept)),
        output_bytes=4 * batch * steps,
        notes=lambda: {"versions": {"jax": jax.__version__}},
    )


def _of_layer(scheme, config, layer: int):
    return scheme[config.layer_types[layer]] if isinstance(scheme, dict) else scheme


def _keys_and_values(layer: int, batch: int, hidden: int, length: int, seed: int):
    """Returns one layer's keys, unrotated, and values: `[batch, kv_heads, length, head_dim]`."""
    import numpy as np

    rng = np.random.default_rng([seed, layer])
    shape = (batch, hidden // _HEAD_DIM // _GROUP, length, _HEAD_DIM)
    return _KEY_SIZE * rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)


def _first(batch: int, seed: int):
    import numpy as np

    return np.random.default_rng(seed).integers(0, _VOCABULARY, (batch,), np.int64)


if __name__ == "__main__":
    app.run(main)
