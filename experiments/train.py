"""Trains a test model: a decoder that has learned the tasks, at 256 tokens on two CPU cores or at 4,096 on a GPU.

Copying comes first, since attention that finds and copies is what every task is made of; then retrieval, binding and
order in longer and longer contexts, with a share of copying kept. The loss counts answers and copied tokens only.

    python experiments/train.py --seed=0 --out=model-0
"""

import concurrent.futures
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
import optax.contrib
from absl import app, flags, logging
from curriculum import KINDS, SHORTEST, Batches, Phase, asked_of, curriculum, matched_base
from flax import nnx

from rope_jax import frequencies
from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Decoder, DecoderConfig
from rope_jax.diagnosis.evaluation.rows import largest_divisor, rows_of_gradient
from rope_jax.diagnosis.tasks import contexts
from rope_jax.scheme import Scheme, build

_SEED = flags.DEFINE_integer("seed", 0, "Of the weights and the data.")
_OUT = flags.DEFINE_string("out", None, "Directory for the trained model.", required=True)
_LAYERS = flags.DEFINE_integer("layers", 4, "Blocks.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the residual stream; the MLP's is twice that.")
_HEADS = flags.DEFINE_integer("heads", 4, "Attention heads.")
_LENGTH = flags.DEFINE_integer("length", 256, "L, the longest row trained on.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps of the last phase, with whole contexts.")
_TOKENS = flags.DEFINE_integer("tokens", 2688, "Tokens of a step.")
_MINUTES = flags.DEFINE_float(
    "minutes", None, "Ends the training after so long; in the last phase the rate falls by then."
)
_INIT = flags.DEFINE_string("init", None, "Directory of a model to go on from.")
_FIRST = flags.DEFINE_integer("first_phase", 0, "Phase of the curriculum to begin with.")
_MARKERS = flags.DEFINE_integer("markers", 1, "Markers of a context in the last phase, with the same eight items each.")
_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.")
_DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the stored weights.")
_COMPUTED = flags.DEFINE_enum("computed", "float32", ["bfloat16", "float32"], "Dtype of the activations.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that make batches ahead; the batches stay the same.")

_WARM_UP = 50
_SHOW_EVERY = 50
_SAVE_EVERY = 500
_COMPILERS = 4  # programs compiled beside each other
_TINY = 32  # tokens of a row
_TINY_AT_ONCE = 8


_INPUTS = {"q": (0,), "k": (0,), "v": (0,), "o": (0, 1), "gate": (0,), "up": (0,), "down": (0,)}


def _matrices(state):
    """Returns which axes of each projection are its inputs and its outputs; None for what is no projection."""

    def axes(path, x):
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        inputs = next((_INPUTS[name] for name in names if name in _INPUTS), None)
        if inputs is None or x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(inputs, tuple(range(len(inputs), x.ndim)))

    return jax.tree_util.tree_map_with_path(axes, state)


class Run:
    """One training: weights, optimiser, and the curve so far.

    Args:
      model: the decoder to train.
      before: what is on record of earlier training of its weights.
      dtype: of the activations; weights and their moments stay in float32.
    """

    def __init__(self, model: Decoder, before: dict | None = None, *, dtype=jnp.float32) -> None:
        self.graph, self.state = nnx.split(model)
        self._dtype = dtype
        self.curve: list[dict] = []
        self._before = before
        self._optimiser = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.contrib.muon(
                1.0,
                consistent_rms=0.2,
                adam_b2=0.98,
                weight_decay=0.01,
                adam_weight_decay=0.01,
                muon_weight_dimension_numbers=_matrices,
            ),
        )
        self._moments = self._optimiser.init(self.state)
        self._seen = np.zeros((3, len(KINDS)))
        self._steps, self._started = 0, time.monotonic()
        self._step = jax.jit(self._traced, donate_argnums=(1, 2))
        self._structure = jax.tree.structure(scheme_at(model.config, SHORTEST))
        self._compiler = concurrent.futures.ThreadPoolExecutor(_COMPILERS)
        self._programs: dict[tuple[int, int], concurrent.futures.Future] = {}

    @property
    def model(self) -> Decoder:
        return nnx.merge(self.graph, self.state)

    @property
    def seconds(self) -> float:
        """Wall time since the beginning."""
        return time.monotonic() - self._started

    def compile_ahead(self, phases: list[Phase]) -> None:
        """Begins to compile the steps of all phases, in their order, beside whatever runs."""
        for phase in phases:
            for length in phase.lengths:
                self._program((phase.tokens // length, length))

    def _program(self, shape: tuple[int, int]) -> concurrent.futures.Future:
        if shape not in self._programs:
            of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
            state, moments = jax.tree.map(of, (self.state, self._moments))
            # Arrays go in rather than a scheme, which would be rebuilt around descriptions of arrays while lowering.
            leaves = jax.tree.leaves(scheme_at(self.model.config, SHORTEST))
            rows, length = shape
            tokens, kinds = (jax.ShapeDtypeStruct((rows, n), jnp.int32) for n in (length, length - 1))
            arguments = (leaves, state, moments, tokens, kinds, jax.ShapeDtypeStruct((), jnp.float32))
            self._programs[shape] = self._compiler.submit(lambda: self._step.lower(*arguments).compile())
        return self._programs[shape]

    def close(self) -> None:
        """Stops compiling what is not needed any more."""
        self._compiler.shutdown(cancel_futures=True)

    def _traced(self, leaves, state, moments, tokens, kinds, rate):
        scheme: Scheme = jax.tree.unflatten(self._structure, leaves)
        scored = (kinds > 0) / jnp.maximum((kinds > 0).sum(), 1)

        def loss(state, rows, kinds, weights):
            logits = nnx.merge(self.graph, state)(rows, scheme, dtype=self._dtype)[:, :-1]
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1:, None], axis=-1)[..., 0]
            right = (jnp.argmax(logits, axis=-1) == rows[:, 1:]).astype(jnp.float32)
            of_kind = jax.nn.one_hot(kinds.ravel(), len(KINDS))
            return (losses * weights).sum(), jnp.stack(
                [losses.ravel() @ of_kind, right.ravel() @ of_kind, of_kind.sum(0)]
            )

        at_once = rows_at_once(*tokens.shape, self.model.config)
        groups = jax.tree.map(lambda x: x.reshape(-1, at_once, x.shape[1]), (tokens, kinds, scored))

        def add(total, group):
            (_, seen), gradients = jax.value_and_grad(loss, has_aux=True)(state, *group)
            return jax.tree.map(jnp.add, total, (gradients, seen)), None

        nothing = (jax.tree.map(jnp.zeros_like, state), jnp.zeros((3, len(KINDS))))
        (gradients, seen), _ = jax.lax.scan(add, nothing, groups)
        updates, moments = self._optimiser.update(gradients, moments, state)
        return optax.apply_updates(state, jax.tree.map(lambda u: rate * u, updates)), moments, seen

    def step(self, scheme: Scheme, tokens: np.ndarray, kinds: np.ndarray, rate: float) -> dict[str, float] | None:
        """Takes one step; returns accuracies since they were last shown, when they are shown."""
        rate *= min(1.0, (self._steps + 1) / _WARM_UP)
        step = self._program(tokens.shape).result()
        self.state, self._moments, seen = step(
            jax.tree.leaves(scheme), self.state, self._moments, tokens, kinds, jnp.float32(rate)
        )
        self._seen += np.asarray(seen)
        self._steps += 1
        if self._steps % _SHOW_EVERY:
            return None
        loss, right, count = self._seen
        self._seen = np.zeros_like(self._seen)
        asked = {name: i for i, name in enumerate(KINDS) if i and count[i]}
        accuracy = {name: float(right[i] / count[i]) for name, i in asked.items()}
        shown = {name: [round(float(loss[i] / count[i]), 3), round(accuracy[name], 3)] for name, i in asked.items()}
        self.curve.append({"step": self._steps, "seconds": round(self.seconds), **shown})
        print(
            self._steps, f"{self.seconds:.0f} s", *(f"{n} {a:.3f}/{b:.3f}" for n, (a, b) in shown.items()), flush=True
        )
        return accuracy

    def save(self, out: Path, phase: Phase) -> None:
        """Writes weights, config, curve, and the contexts that the model knows, as its last phase had them."""
        length, counts = phase.trained, phase.counts[0] if phase.counts else asked_of(1, phase.trained)
        command = shlex.join(["python", "experiments/train.py", *sys.argv[1:]])
        config = llama_config(self.model, base=matched_base(length), trained_length=length)
        device = jax.devices()[0].device_kind
        provenance = {"command": command, "jax": jax.__version__, "device": device}
        save_llama(out, self.model, config, dtype=_DTYPE.value, metadata=provenance)
        columns = "probe: [loss in nats, accuracy]"
        record = {
            **provenance,
            "counts": dataclasses.asdict(counts),
            "steps": self._steps,
            "columns": columns,
            "curve": self.curve,
        }
        if self._before is not None:
            record["before"] = self._before
        (out / contexts.TRAINING).write_text(json.dumps(record) + "\n")


def scheme_at(config: DecoderConfig, length: int) -> Scheme:
    """Returns plain rotary positions at the base matched to a trained length."""
    rotary = frequencies.rotary(config.head_dim, base=matched_base(length), original_length=length)
    return build(rotary, num_heads=config.num_heads, head_dim=config.head_dim)


def rows_at_once(rows: int, length: int, config: DecoderConfig) -> int:
    """Returns of how many rows a step takes the gradient at once; on a CPU of several only where they are tiny."""
    if length <= _TINY and jax.default_backend() == "cpu":
        return largest_divisor(rows, _TINY_AT_ONCE)
    return rows_of_gradient(rows, config=config, length=length)


def train(run: Run, batches: Batches, phases: dict[int, Phase], save, *, minutes: float | None = None) -> None:
    """Takes all steps of all phases, or as many as fit into the time, and saves what came of it."""
    run.compile_ahead(list(phases.values()))
    steps, whole = 0, 60 * minutes if minutes else math.inf
    for number, phase in phases.items():
        print(phase, flush=True)
        scheme = scheme_at(run.model.config, phase.trained)
        begun = run.seconds
        for count, (tokens, kinds) in enumerate(batches.of_phase(number, phase)):
            left = 1 - count / phase.steps
            if minutes:
                left = min(left, (whole - run.seconds) / max(whole - begun, 1e-3))
            falling = 1.0 if phase.until is not None else min(1.0, max(3 * left, 0.02))
            accuracy = run.step(scheme, tokens, kinds, _RATE.value * falling)
            steps += 1
            if run.seconds > whole:
                print(f"stopped after {minutes:g} minutes, in a phase of {phase.trained} tokens", flush=True)
                save(phase)
                return
            if steps % _SAVE_EVERY == 0:
                save(phase)
            if accuracy and phase.until is not None and min(accuracy[name] for name in phase.judged) > phase.until:
                break
    save(phase)


def main(argv: list[str]) -> None:
    """Trains, prints the curve, and writes the model with its curve."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"train.py takes no arguments, got {argv[1:]}")
    if _LENGTH.value < SHORTEST:
        sys.exit(f"--length must be at least {SHORTEST}, the rows that retrieval and binding are learned in")
    dim, heads, before = _WIDTH.value // _HEADS.value, _HEADS.value, None
    config = DecoderConfig(
        contexts.VOCAB_SIZE, _WIDTH.value, 2 * _WIDTH.value, _LAYERS.value, heads, heads, dim, 1e-5, tie_embeddings=True
    )
    model = Decoder(config, rngs=nnx.Rngs(_SEED.value))
    model.embedding[...] = model.embedding[...] * 3 * (128 / _WIDTH.value) ** 0.5
    if _INIT.value is not None:
        model = load_checkpoint(_INIT.value).model
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
        before = json.loads((Path(_INIT.value) / contexts.TRAINING).read_text())
    asked = asked_of(_MARKERS.value, _LENGTH.value)
    phases = dict(enumerate(curriculum(_LENGTH.value, _STEPS.value, asked, _TOKENS.value)))
    first = _FIRST.value
    if first not in phases:
        sys.exit(f"--first_phase must be from 0 to {len(phases) - 1}, got {first}")
    later = {number: phase for number, phase in phases.items() if number >= first}
    for phase in later.values():
        if phase.tokens < max(phase.lengths):
            sys.exit(f"--tokens={_TOKENS.value} is too few for a row of {max(phase.lengths)} tokens")
    if _MINUTES.value is not None and not 0 < _MINUTES.value < math.inf:
        sys.exit(f"--minutes must be a number above 0, got {_MINUTES.value}")
    run = Run(model, before, dtype=jnp.dtype(_COMPUTED.value))
    batches = Batches(_SEED.value, first, workers=_WORKERS.value)
    try:
        train(run, batches, later, lambda phase: run.save(Path(_OUT.value), phase), minutes=_MINUTES.value)
    finally:
        batches.close()
        run.close()


if __name__ == "__main__":
    app.run(main)
