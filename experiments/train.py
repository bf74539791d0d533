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


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
      lengths: of rows; each step draws one.
      tokens: of a step.
      copied: share of rows that are repeated text; the others are haystacks.
      steps: most steps.
      until: accuracy at which the phase ends early; the rate falls in the last third of a phase that never does.
      judged: what that accuracy is the least of.
      counts: facts and questions of a haystack.
    """

    lengths: tuple[int, ...]
    tokens: int
    copied: float
    steps: int
    until: float | None = None
    judged: tuple[str, ...] = ("copy",)
    counts: hay.Counts = dataclasses.field(default_factory=hay.Counts)


def curriculum(length: int, steps: int, markers: int, extras: bool) -> list[Phase]:
    """Returns the phases: copying, then retrieval, binding and order in longer and longer haystacks."""
    one = hay.Counts(markers=1, distances=0, repeats=0, ith_questions=0, counted=0)
    several = hay.Counts(markers=markers) if extras else dataclasses.replace(one, markers=markers)
    return [
        Phase((32,), 4096, 1.0, 1500, until=0.75),
        Phase((64,), 4096, 1.0, 1500, until=0.93),
        Phase((112,), 5376, 0.2, 2000, until=0.9, judged=("bind",), counts=one),
        Phase(tuple(max(112, length * eighths // 8) for eighths in (6, 7, 8)), 5376, 1 / 6, steps, counts=several),
    ]


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
        asked = hay.haystacks(rng, rows=rows - copies, length=length, counts=phase.counts)
        tokens.append(asked.tokens)
        answered = np.zeros((rows - copies, length - 1), np.int32)
        np.put_along_axis(answered, asked.position, asked.probe + 1, axis=1)
        kinds.append(answered)
    return np.concatenate(tokens), np.concatenate(kinds)


class Run:
    """One training: weights, optimiser, and the curve so far.

    Args:
      model: the decoder to train.
      scheme: its positions.
    """

    def __init__(self, model: Decoder, scheme: Scheme) -> None:
        self.graph, self.state = nnx.split(model)
        self.curve: list[dict] = []
        self._optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), optax.add_decayed_weights(0.01)
        )
        self._moments = self._optimiser.init(self.state)
        self._seen = np.zeros((3, len(_KINDS)))
        self._steps, self._started = 0, time.monotonic()
        self._step = jax.jit(lambda *arguments: self._traced(scheme, *arguments), donate_argnums=(0, 1))

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

    def step(self, tokens: np.ndarray, kinds: np.ndarray, rate: float) -> dict[str, float] | None:
        """Takes one step; returns accuracies since they were last shown, when they are shown."""
        rate *= min(1.0, (self._steps + 1) / _WARM_UP)
        self.state, self._moments, seen = self._step(self.state, self._moments, tokens, kinds, jnp.float32(rate))
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

    def save(self, out: Path, *, base: float, length: int, counts: hay.Counts) -> None:
        """Writes weights, config, curve, and the haystacks that the model knows."""
        command = shlex.join(["python", "experiments/train.py", *sys.argv[1:]])
        config = llama_config(self.model, base=base, trained_length=length)
        provenance = {"command": command, "jax": jax.__version__}
        save_llama(out, self.model, config, dtype=_DTYPE.value, metadata=provenance)
        columns = "probe: [loss in nats, accuracy]"
        record = {**provenance, "counts": dataclasses.asdict(counts), "columns": columns, "curve": self.curve}
        (out / "training.json").write_text(json.dumps(record) + "\n")


def train(run: Run, rng: np.random.Generator, phases: list[Phase], save) -> None:
    """Takes all steps of all phases."""
    steps = 0
    for phase in phases:
        print(phase, flush=True)
        for count in range(phase.steps):
            tokens, kinds = batch_of(rng, phase, int(rng.choice(phase.lengths)))
            left = 1.0 if phase.until is not None else 3 * (phase.steps - count) / phase.steps
            accuracy = run.step(tokens, kinds, _RATE.value * min(1.0, max(left, 0.02)))
            steps += 1
            if steps % _SAVE_EVERY == 0:
                save()
            if accuracy and phase.until is not None and min(accuracy[name] for name in phase.judged) > phase.until:
                break


def main(argv: list[str]) -> None:
    """Trains, prints the curve, and writes the model with its curve."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"train.py takes no arguments, got {argv[1:]}")
    base, dim, heads = matched_base(_LENGTH.value), _WIDTH.value // _HEADS.value, _HEADS.value
    config = DecoderConfig(
        hay.VOCAB_SIZE, _WIDTH.value, 2 * _WIDTH.value, _LAYERS.value, heads, heads, dim, 1e-5, tie_embeddings=True
    )
    model = Decoder(config, rngs=nnx.Rngs(_SEED.value))
    model.embedding[...] = model.embedding[...] * 3
    if _INIT.value is not None:
        model = load_checkpoint(_INIT.value).model
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
    rotary = frequencies.rotary(dim, base=base, original_length=_LENGTH.value)
    run = Run(model, build(rotary, num_heads=heads, head_dim=dim))

    phases = curriculum(_LENGTH.value, _STEPS.value, _MARKERS.value, _EXTRAS.value)

    def save() -> None:
        run.save(Path(_OUT.value), base=base, length=_LENGTH.value, counts=phases[-1].counts)

    train(run, np.random.default_rng([_SEED.value, _FIRST.value]), phases[_FIRST.value :], save)
    save()


if __name__ == "__main__":
    app.run(main)
