"""A whole model against transformers: logits of a prompt from the same random Llama weights, float32.

    python experiments/benchmarks/model.py [--lengths=1024,4096] [--layers=4] [--hidden=512] [--out=FILE.json]

transformers writes a small Llama checkpoint to a temporary directory; both libraries load it and run it forward without
a cache, transformers with its default attention (SDPA). Logits must agree.
"""

import sys
import tempfile

import interleaved
import report
from absl import app, flags, logging
from interleaved import Contender, Race, ratio
from report import Row
from worker import Prepared

_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096"], "Tokens of the prompt.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_HIDDEN = flags.DEFINE_integer("hidden", 512, "Width; heads have 64 dimensions, two query heads share a key head.")
_RUNS = flags.DEFINE_integer("runs", 7, "Interleaved timed rounds.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of weights and tokens; a fresh one where absent.")
_QUICK = flags.DEFINE_boolean("quick", False, "One layer, 256 tokens and one round: shows that everything runs.")
_OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")

_VOCABULARY, _HEAD_DIM = 4096, 64


def main(argv: list[str]) -> None:
    """Prints both libraries' times and their ratio."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"model.py takes no arguments, got {argv[1:]}")
    if not all(x.isdigit() and int(x) > 0 for x in _LENGTHS.value):
        sys.exit("--lengths takes positive whole numbers, separated by commas")
    if _HIDDEN.value % (2 * _HEAD_DIM) or min(_HIDDEN.value, _LAYERS.value, _RUNS.value) < 1:
        sys.exit(f"--hidden must be a multiple of {2 * _HEAD_DIM}, --layers and --runs at least 1")
    seed = interleaved.fresh_seed() if _SEED.value is None else _SEED.value
    layers, rounds = (1, 1) if _QUICK.value else (_LAYERS.value, _RUNS.value)
    lengths = [256] if _QUICK.value else [int(x) for x in _LENGTHS.value]
    rows, races = [], []
    with tempfile.TemporaryDirectory() as directory:
        shape = {"directory": directory, "hidden": _HIDDEN.value, "layers": layers, "seed": seed}
        contenders = [Contender("transformers", "model:theirs", shape), Contender("ours", "model:ours", shape)]
        with Race(contenders) as race:
            for length in lengths:
                results = race.run({"length": length}, rounds=rounds)
                note = report.why(results, "ours", "transformers")
                measured = float("nan") if note else ratio(results, "transformers", "ours")
                apart = {} if note else interleaved.difference(results, "ours", "transformers")
                note = note or f"logits differ by {apart['logits']:.0e} of the largest"
                work = f"prompt of a Llama, {layers} layers, width {_HIDDEN.value}"
                rows.append(Row(work, "transformers, SDPA", length, _HEAD_DIM, measured, note=note))
                if not _JSON.value:
                    print(report.times(f"\n{work}, {length:,} tokens", results), flush=True)
                races.append(({"length": length}, results))
    report.finish(rows, races, {"seed": seed, "runs": rounds}, out=_OUT.value, as_json=_JSON.value)


def theirs(*, directory: str, hidden: int, layers: int, seed: int, length: int) -> Prepared:
    """Returns transformers' forward pass; writes the checkpoint first, so that it must be prepared before `ours`."""
    import pathlib

    import torch
    import transformers

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
            num_key_value_heads=heads // 2,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = torch.from_numpy(_tokens(length, seed)).long()

    def run():
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    return Prepared(
        run=run,
        to_numpy=lambda logits: {"logits": logits.numpy()},
        input_bytes=sum(p.nbytes for p in model.parameters()),
        output_bytes=4 * length * _VOCABULARY,
        notes=lambda: {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}},
    )


def ours(*, directory: str, hidden: int, layers: int, seed: int, length: int) -> Prepared:
    """Returns this library's forward pass of the checkpoint in `directory`, weights and scheme as arguments."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from rope_jax.checkpoints.checkpoint import schemes_of
    from rope_jax.checkpoints.loading import load_checkpoint

    checkpoint = load_checkpoint(directory)
    graph, weights = nnx.split(checkpoint.model)
    inputs = (weights, schemes_of(checkpoint), jnp.asarray(_tokens(length, seed), jnp.int32))
    compiled = {}

    def compile_it() -> None:
        forward = jax.jit(lambda weights, scheme, tokens: nnx.merge(graph, weights)(tokens, scheme))
        compiled["run"] = forward.lower(*inputs).compile()

    return Prepared(
        run=lambda: jax.block_until_ready(compiled["run"](*inputs)),
        compile=compile_it,
        to_numpy=lambda logits: {"logits": np.asarray(logits)},
        input_bytes=sum(x.nbytes for x in jax.tree.leaves(weights)),
        output_bytes=4 * length * _VOCABULARY,
        notes=lambda: {"versions": {"jax": jax.__version__}},
    )


def _tokens(length: int, seed: int):
    import numpy as np

    return np.random.default_rng(seed).integers(0, _VOCABULARY, (1, length), np.int64)


if __name__ == "__main__":
    app.run(main)
