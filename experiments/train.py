"""Trains the stand-in: a small decoder that has learned the probes at 256 tokens, on two CPU cores.

Copying comes first, since attention that finds and copies is what every probe is made of; then retrieval, binding and
order in longer and longer haystacks, with a share of copying kept. The loss counts answers and copied tokens only.

    python experiments/train.py --seed=0 --out=standin-0
"""

import dataclasses
import json
import math
import shlex
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx

from rope_jax import frequencies
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.scheme import Scheme, build
from rope_jax.subjects import haystacks as hay

_SEED = flags.DEFINE_integer("seed", 0, "Of the weights and the data.")
_OUT = flags.DEFINE_string("out", None, "Directory for the trained model.", required=True)
_LAYERS = flags.DEFINE_integer("layers", 4, "Blocks.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the residual stream; the MLP's is twice that.")
_HEADS = flags.DEFINE_integer("heads", 4, "Attention heads.")
_LENGTH = flags.DEFINE_integer("length", 256, "L, the longest row trained on.")
_STEPS = flags.DEFINE_integer("steps", 2400, "Steps of the last phase, with whole haystacks.")
_INIT = flags.DEFINE_string("init", None, "Directory of a model to go on from.")
_FIRST = flags.DEFINE_integer("first_phase", 0, "Phase of the curriculum to begin with.")
_MARKERS = flags.DEFINE_integer(
    "markers", 1, "Markers of a haystack in the last phase, with the same eight items each."
)
_EXTRAS = flags.DEFINE_boolean("extras", False, "Whether dist, ith and count are trained too, in the last phase.")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
_DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the stored weights.")

_KINDS = ("nothing", *hay.PROBES, "copy")  # what a next token is scored as
_WARM_UP = 50
_SHOW_EVERY = 50
_SAVE_EVERY = 500
_SHORTEST = 112  # tokens of a row of haystacks


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
      lengths: of rows; each step draws one.
      tokens: of a step.
      trained: the trained length that the base of the phase is matched to.
      copied: share of rows that are repeated text; the others are haystacks.
      steps: most steps.
      until: accuracy at which the phase ends early; the rate falls in the last third of a phase that never does.
      judged: what that accuracy is the least of.
      counts: facts and questions of a haystack; each step draws one.
    """

    lengths: tuple[int, ...]
    tokens: int
    trained: int
    copied: float
    steps: int
    until: float | None = None
    judged: tuple[str, ...] = ("copy",)
    counts: tuple[hay.Counts, ...] = ()


def asked_of(markers: int, extras: bool) -> hay.Counts:
    """Returns the facts and questions of a haystack that the trained model is to know."""
    if extras:
        return hay.Counts(markers=markers)
    return hay.Counts(markers=markers, distances=0, repeats=0, ith_questions=0, counted=0)


def curriculum(length: int, steps: int, asked: hay.Counts) -> list[Phase]:
    """Returns the phases: copying, then retrieval and binding, then order, first in short haystacks.

    What is learned in 128 tokens is known in 256 within a few steps, at the base of that length, and costs half.
    Order comes last and slowest: half of the steps ask for twice as many pairs of events, and for less of the rest.
    """
    first = min(length, 128)
    one = asked_of(1, extras=False)
    ordered = dataclasses.replace(one, pairs=3, bind_questions=4, order_pairs=8)
    phases = [
        Phase((32,), 4096, first, 1.0, 1500, until=0.75),
        Phase((64,), 4096, first, 1.0, 1500, until=0.93),
        Phase((_SHORTEST,), 5376, first, 0.2, 2000, until=0.9, judged=("bind",), counts=(one,)),
    ]
    if length > first:
        phases.append(
            Phase((_SHORTEST, 128), 5376, first, 0.15, 4000, until=0.9, judged=("ord",), counts=(one, ordered))
        )
    lengths = tuple(max(_SHORTEST, length * eighths // 8) for eighths in (6, 7, 8))
    return [*phases, Phase(lengths, 5376, length, 0.15, steps, counts=(asked, ordered))]


def matched_base(length: int) -> float:
    """Returns the base at which `length` tokens span as much of the frequencies as 4,096 do at base 10,000."""
    return math.exp(math.log(length / (2 * math.pi)) * math.log(10000.0) / math.log(4096 / (2 * math.pi)))


def batch_of(rng: np.random.Generator, phase: Phase, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens `[rows, length]` and what each next token is scored as, `[rows, length - 1]`."""
    rows = phase.tokens // length
    copies = round(rows * phase.copied)
    tokens, kinds = [], []
    if copies:
        text = hay.repeated_text(rng, rows=copies, length=length, farthest=min(128, length - 16))
        tokens.append(text.tokens)
        kinds.append((text.predictable * _KINDS.index("copy")).astype(np.int32))
    if rows > copies:
        counts = phase.counts[int(rng.integers(len(phase.counts)))]
        asked = hay.haystacks(rng, rows=rows - copies, length=length, counts=counts)
        tokens.append(asked.tokens)
        answered = np.zeros((rows - copies, length - 1), np.int32)
        np.put_along_axis(answered, asked.position, asked.probe + 1, axis=1)
        kinds.append(answered)
    return np.concatenate(tokens), np.concatenate(kinds)


class Run:
    """One training: weights, optimiser, and the curve so far.

    Args:
      model: the decoder to train.
      before: what is on record of earlier training of its weights.
    """

    def __init__(self, model: Decoder, before: dict | None = None) -> None:
        self.graph, self.state = nnx.split(model)
        self.curve: list[dict] = []
        self._before = before
        self._optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), optax.add_decayed_weights(0.01)
        )
        self._moments = self._optimiser.init(self.state)
        self._seen = np.zeros((3, len(_KINDS)))
        self._steps, self._started = 0, time.monotonic()
        self._step = jax.jit(self._traced, donate_argnums=(1, 2))

    @property
    def model(self) -> Decoder:
        return nnx.merge(self.graph, self.state)

    def _traced(self, scheme: Scheme, state, moments, tokens, kinds, rate):
        scored = (kinds > 0) / jnp.maximum((kinds > 0).sum(), 1)

        def loss(state, rows, kinds, weights):
            logits = nnx.merge(self.graph, state)(rows, scheme)[:, :-1]
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1:, None], axis=-1)[..., 0]
            right = (jnp.argmax(logits, axis=-1) == rows[:, 1:]).astype(jnp.float32)
            of_kind = jax.nn.one_hot(kinds.ravel(), len(_KINDS))
            return (losses * weights).sum(), jnp.stack(
                [losses.ravel() @ of_kind, right.ravel() @ of_kind, of_kind.sum(0)]
            )

        # Gradients row by row, or of a few tiny rows: on a CPU a batch takes longer than its rows one after another.
        at_once = 8 if tokens.shape[1] <= 32 else 1
        groups = jax.tree.map(lambda x: x.reshape(-1, at_once, x.shape[1]), (tokens, kinds, scored))

        def add(total, group):
            (_, seen), gradients = jax.value_and_grad(loss, has_aux=True)(state, *group)
            return jax.tree.map(jnp.add, total, (gradients, seen)), None

        nothing = (jax.tree.map(jnp.zeros_like, state), jnp.zeros((3, len(_KINDS))))
        (gradients, seen), _ = jax.lax.scan(add, nothing, groups)
        updates, moments = self._optimiser.update(gradients, moments, state)
        return optax.apply_updates(state, jax.tree.map(lambda u: -rate * u, updates)), moments, seen

    def step(self, scheme: Scheme, tokens: np.ndarray, kinds: np.ndarray, rate: float) -> dict[str, float] | None:
        """Takes one step; returns accuracies since they were last shown, when they are shown."""
        rate *= min(1.0, (self._steps + 1) / _WARM_UP)
        self.state, self._moments, seen = self._step(
            scheme, self.state, self._moments, tokens, kinds, jnp.float32(rate)
        )
        self._seen += np.asarray(seen)
        self._steps += 1
        if self._steps % _SHOW_EVERY:
            return None
        loss, right, count = self._seen
        self._seen = np.zeros_like(self._seen)
        asked = {name: i for i, name in enumerate(_KINDS) if i and count[i]}
        accuracy = {name: float(right[i] / count[i]) for name, i in asked.items()}
        shown = {name: [round(float(loss[i] / count[i]), 3), round(accuracy[name], 3)] for name, i in asked.items()}
        seconds = round(time.monotonic() - self._started)
        self.curve.append({"step": self._steps, "seconds": seconds, **shown})
        print(self._steps, f"{seconds} s", *(f"{n} {a:.3f}/{b:.3f}" for n, (a, b) in shown.items()), flush=True)
        return accuracy

    def save(self, out: Path, *, length: int, counts: hay.Counts) -> None:
        """Writes weights, config, curve, and the haystacks that the model knows."""
        command = shlex.join(["python", "experiments/train.py", *sys.argv[1:]])
        config = llama_config(self.model, base=matched_base(length), trained_length=length)
        provenance = {"command": command, "jax": jax.__version__}
        save_llama(out, self.model, config, dtype=_DTYPE.value, metadata=provenance)
        columns = "probe: [loss in nats, accuracy]"
        record = {**provenance, "counts": dataclasses.asdict(counts), "columns": columns, "curve": self.curve}
        if self._before is not None:
            record["before"] = self._before
        (out / hay.TRAINING).write_text(json.dumps(record) + "\n")


def scheme_at(config: DecoderConfig, length: int) -> Scheme:
    """Returns plain rotary positions at the base matched to a trained length."""
    rotary = frequencies.rotary(config.head_dim, base=matched_base(length), original_length=length)
    return build(rotary, num_heads=config.num_heads, head_dim=config.head_dim)


def train(run: Run, rng: np.random.Generator, phases: list[Phase], save) -> None:
    """Takes all steps of all phases."""
    steps = 0
    for phase in phases:
        print(phase, flush=True)
        scheme = scheme_at(run.model.config, phase.trained)
        for count in range(phase.steps):
            tokens, kinds = batch_of(rng, phase, int(rng.choice(phase.lengths)))
            left = 1.0 if phase.until is not None else 3 * (phase.steps - count) / phase.steps
            accuracy = run.step(scheme, tokens, kinds, _RATE.value * min(1.0, max(left, 0.02)))
            steps += 1
            if steps % _SAVE_EVERY == 0:
                save(phase.trained)
            if accuracy and phase.until is not None and min(accuracy[name] for name in phase.judged) > phase.until:
                break


def main(argv: list[str]) -> None:
    """Trains, prints the curve, and writes the model with its curve."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"train.py takes no arguments, got {argv[1:]}")
    if _LENGTH.value < _SHORTEST:
        sys.exit(f"--length must be at least {_SHORTEST}, the rows that retrieval and binding are learned in")
    dim, heads, before = _WIDTH.value // _HEADS.value, _HEADS.value, None
    config = DecoderConfig(
        hay.VOCAB_SIZE, _WIDTH.value, 2 * _WIDTH.value, _LAYERS.value, heads, heads, dim, 1e-5, tie_embeddings=True
    )
    model = Decoder(config, rngs=nnx.Rngs(_SEED.value))
    model.embedding[...] = model.embedding[...] * 3
    if _INIT.value is not None:
        model = load_checkpoint(_INIT.value).model
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
        before = json.loads((Path(_INIT.value) / hay.TRAINING).read_text())
    run = Run(model, before)
    asked = asked_of(_MARKERS.value, _EXTRAS.value)
    phases = curriculum(_LENGTH.value, _STEPS.value, asked)

    def save(length: int) -> None:
        run.save(Path(_OUT.value), length=length, counts=asked)

    train(run, np.random.default_rng([_SEED.value, _FIRST.value]), phases[_FIRST.value :], save)
    save(_LENGTH.value)


if __name__ == "__main__":
    app.run(main)
