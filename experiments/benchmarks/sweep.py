"""Many schemes swept over one model in one compiled program, against as many separate runs.

    python experiments/benchmarks/sweep.py [--schemes=64] [--length=512] [--checkpoint=DIRECTORY --text=TOKENS.npy]

- sweep: one program, `lax.map` over stacked schemes; each gives the mean loss of the tokens.
- one program, called for each: a loop over one jitted forward that takes the scheme as an argument.
- separate runs: a loop over forwards with their scheme built in, as a run that knows one scheme would be compiled.
  Compiling is left out of their time; `--programs` of them are compiled and called in turn.

The goal is one compilation and at most 1.05 times the time of the separate runs. Losses must agree.
"""

import itertools
import sys

import interleaved
import report
from absl import app, flags, logging
from interleaved import Contender, Race, ratio
from report import Row
from worker import Prepared

_SCHEMES = flags.DEFINE_integer("schemes", 64, "Schemes.")
_PROGRAMS = flags.DEFINE_integer("programs", 12, "Programs compiled for the separate runs; 12 hold every kind.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens.")
_RUNS = flags.DEFINE_integer("runs", 7, "Interleaved timed rounds.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of weights and tokens; a fresh one where absent.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A model; a small random one where absent.")
_TEXT = flags.DEFINE_string("text", None, "Token ids for it, .npy; random ones where absent.")
_QUICK = flags.DEFINE_boolean("quick", False, "4 schemes, 64 tokens, one round: shows that everything runs.")
_OUT = flags.DEFINE_string("out", None, "File for the results as JSON.")
_JSON = flags.DEFINE_boolean("json", False, "One JSON object in place of the table.")


def main(argv: list[str]) -> None:
    """Prints compilations, times and ratios."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"sweep.py takes no arguments, got {argv[1:]}")
    if min(_SCHEMES.value, _PROGRAMS.value, _LENGTH.value - 1, _RUNS.value) < 1:
        sys.exit("--schemes, --programs and --runs must be at least 1, --length at least 2")
    seed = interleaved.fresh_seed() if _SEED.value is None else _SEED.value
    schemes, length, rounds = (4, 64, 1) if _QUICK.value else (_SCHEMES.value, _LENGTH.value, _RUNS.value)
    given = {"count": schemes, "length": length, "seed": seed, "checkpoint": _CHECKPOINT.value, "text": _TEXT.value}
    programs = min(_PROGRAMS.value, schemes)
    contenders = (
        Contender("sweep", "sweep:swept"),
        Contender("one program, called for each", "sweep:looped"),
        Contender("separate runs", "sweep:separate", {"programs": programs}),
    )
    with Race(contenders) as race:
        results = race.run(given, rounds=rounds)
    rows = []
    dim = results["sweep"].notes.get("head_dim", 0)
    for other, at_most in (("separate runs", 1.05), ("one program, called for each", None)):
        note = report.why(results, "sweep", other)
        measured = float("nan") if note else ratio(results, "sweep", other)
        if not note and (other != "separate runs" or programs == schemes):
            note = f"losses differ by {interleaved.difference(results, 'sweep', other)['losses']:.0e} of the largest"
        work = f"{schemes} schemes swept, their time"
        rows.append(Row(work, other, length, dim, measured, at_most=at_most, note=note))
    compiled = {name: result.notes.get("compilations", float("nan")) for name, result in results.items()}
    rows.append(Row("compilations of the sweep", "-", length, dim, compiled["sweep"], "", at_most=1))
    if not _JSON.value:
        print(report.times(f"{schemes} schemes, {length:,} tokens, {programs} programs for the separate runs", results))
        print("compilations: " + ", ".join(f"{name} {count}" for name, count in compiled.items()))
    settings = {"seed": seed, "runs": rounds, "schemes": schemes, "programs": programs}
    report.finish(rows, [({"length": length}, results)], settings, out=_OUT.value, as_json=_JSON.value)


def swept(**given) -> Prepared:
    """Returns all schemes in one program."""
    import jax

    from rope_jax.scheme import stack

    loss, weights, tokens, schemes, head_dim = _model(**given)
    stacked = stack(schemes)
    sweep = jax.jit(lambda weights, tokens, stacked: jax.lax.map(lambda one: loss(weights, tokens, one), stacked))
    return _prepared(lambda: sweep(weights, tokens, stacked), head_dim)


def looped(**given) -> Prepared:
    """Returns a loop over one program with the scheme as an argument."""
    import jax

    from rope_jax.scheme import stack

    loss, weights, tokens, schemes, head_dim = _model(**given)
    stacked = stack(schemes)
    each = [jax.tree.map(lambda leaf, at=at: leaf[at], stacked) for at in range(len(schemes))]
    forward = jax.jit(loss)
    return _prepared(lambda: [forward(weights, tokens, one) for one in each], head_dim)


def separate(*, programs: int, **given) -> Prepared:
    """Returns a loop over programs with their scheme built in; the first `programs` schemes stand for all.

    With fewer programs than schemes, they are called in turn, as often as there are schemes.
    """
    import functools

    import jax

    loss, weights, tokens, schemes, head_dim = _model(**given)
    built_in = [jax.jit(functools.partial(loss, scheme=one)) for one in schemes[:programs]]
    calls = list(itertools.islice(itertools.cycle(built_in), len(schemes)))

    def run():
        losses = []
        for forward in calls:
            losses.append(forward(weights, tokens))
            jax.block_until_ready(losses[-1])  # separate runs do not overlap
        return losses

    return _prepared(run, head_dim)


def _prepared(run, head_dim: int) -> Prepared:
    import jax
    import numpy as np

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
    counted = {}

    def complete():
        return jax.block_until_ready(run())

    def compile_it() -> None:
        compilations.clear()
        complete()
        complete()  # nothing more may be compiled
        counted["compilations"] = len(compilations)

    return Prepared(
        run=complete,
        compile=compile_it,
        to_numpy=lambda losses: {"losses": np.asarray(losses)},
        notes=lambda: {"versions": {"jax": jax.__version__}, "head_dim": head_dim, **counted},
    )


def _model(*, count: int, length: int, seed: int, checkpoint: str | None, text: str | None):
    """Returns the loss of a scheme, the weights, the tokens, the schemes, and the head dimension."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from rope_jax.decoder import Decoder, DecoderConfig

    layout = "half"
    if checkpoint is None:
        config = DecoderConfig(
            vocab_size=1024,
            hidden_size=256,
            intermediate_size=688,
            num_layers=4,
            num_heads=8,
            num_kv_heads=4,
            head_dim=32,
            rms_norm_eps=1e-5,
        )
        model = Decoder(config, rngs=nnx.Rngs(seed % 2**31))
    else:
        from rope_jax.checkpoints.loading import load_checkpoint

        loaded = load_checkpoint(checkpoint)
        model, config, layout = loaded.model, loaded.config, loaded.layout
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, length) if text is None else np.load(text).reshape(-1)[:length]
    tokens = jnp.asarray(ids[None], jnp.int32)
    graph, weights = nnx.split(model)

    def loss(weights, tokens, scheme):
        logits = nnx.merge(graph, weights)(tokens, scheme)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
        return -chosen.mean()

    return loss, weights, tokens, _schemes(count, config.num_heads, config.head_dim, layout, seed), config.head_dim


def _schemes(count: int, heads: int, dim: int, layout, seed: int) -> list:
    """Returns retrofits of one rotary embedding: scalings of growing factors, in turn with no bias, ALiBi, and T5."""
    import numpy as np

    from rope_jax.biases import alibi_paper, t5_bias
    from rope_jax.frequencies import rotary
    from rope_jax.scaling import linear, ntk, yarn
    from rope_jax.scheme import build

    table = np.random.default_rng(seed).standard_normal((heads, 32))
    trained = rotary(dim, base=10000.0, original_length=512)
    rules = (
        lambda factor: linear(factor=factor),
        lambda factor: ntk(factor=factor),
        lambda factor: yarn(factor=factor, original_length=512),
    )
    biases = (None, alibi_paper(heads), t5_bias(table), alibi_paper(heads, multiplier=0.1))
    made = []
    for at in range(count):
        factor = 1.0 + at / 8
        bias = biases[at % len(biases)]
        made.append(build(rules[at % 3](factor)(trained), bias, num_heads=heads, head_dim=dim, layout=layout))
    return made


if __name__ == "__main__":
    app.run(main)
