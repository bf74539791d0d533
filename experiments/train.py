"""Trains the stand-in: a small decoder that has learned the probes at 256 tokens, on two CPU cores.

Copying comes first, since attention that finds and copies is what every probe is made of; then all probes, many
questions a row, with a share of copying kept. The loss counts answers and copied tokens only.

    python experiments/train.py --seed=0 --out=standin-0
"""

import dataclasses
import functools
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
from rope_jax.diagnosis import haystacks as hay
from rope_jax.scheme import build

_SEED = flags.DEFINE_integer("seed", 0, "Of the weights and the data.")
_OUT = flags.DEFINE_string("out", None, "Directory for the trained model.", required=True)
_LAYERS = flags.DEFINE_integer("layers", 3, "Blocks.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the residual stream; the MLP's is twice that.")
_HEADS = flags.DEFINE_integer("heads", 4, "Attention heads.")
_LENGTH = flags.DEFINE_integer("length", 256, "L, the longest row trained on.")
_STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the last phase, with whole haystacks.")
_INIT = flags.DEFINE_string("init", None, "Directory of a model to go on from, in the last phase.")
_EXTRAS = flags.DEFINE_boolean("extras", False, "Whether dist, ith and count are trained too, in the last phase.")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
_DTYPE = flags.DEFINE_enum("dtype", "float16", ["float16", "float32"], "Of the stored weights.")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
      lengths: of rows; each step draws one.
      tokens: of a step.
      copied: share of rows that are repeated text; the others are haystacks.
      steps: most steps.
      until: accuracy at which the phase ends early, over copies and the probes named.
      judged: what that accuracy is the least of.
      counts: facts and questions of a haystack.
    """

    lengths: tuple[int, ...]
    tokens: int
    copied: float
    steps: int
    until: float = 2.0
    judged: tuple[str, ...] = ("copy",)
    counts: hay.Counts = dataclasses.field(default_factory=hay.Counts)


_NO_MORE = {"distances": 0, "repeats": 0, "ith_questions": 0, "counted": 0}


def curriculum(length: int, steps: int, extras: bool) -> list[Phase]:
    """Returns the phases: copying, then retrieval, binding and order in longer and longer haystacks, then the rest."""
    one = hay.Counts(markers=1, bind_questions=8, **_NO_MORE)
    two = hay.Counts(bind_questions=8, **_NO_MORE)
    return [
        Phase((32,), 4096, 1.0, 1500, until=0.75),
        Phase((64,), 4096, 1.0, 1500, until=0.93),
        Phase((112,), 5376, 0.2, 1500, until=0.9, judged=("ret", "bind"), counts=one),
        Phase((128,), 5376, 0.2, 1000, until=0.9, judged=("ret", "bind"), counts=two),
        Phase((length * 3 // 4, length * 7 // 8, length), 5376, 1 / 6, steps, counts=hay.Counts() if extras else two),
    ]


def matched_base(length: int) -> float:
    """Returns the base at which `length` tokens span as much of the frequencies as 4,096 do at base 10,000."""
    return math.exp(math.log(length / (2 * math.pi)) * math.log(10000.0) / math.log(4096 / (2 * math.pi)))


def answer_targets(rows: hay.Haystacks) -> np.ndarray:
    """Returns, for each next token, 1 + the probe it answers, or 0, `[rows, length - 1]`."""
    kinds = np.zeros((rows.tokens.shape[0], rows.tokens.shape[1] - 1), np.int32)
    np.put_along_axis(kinds, rows.position, rows.probe + 1, axis=1)
    return kinds


def batch_of(rng: np.random.Generator, phase: Phase, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and kinds of next tokens: 0 unscored, 1 to 6 the probes, 7 copied."""
    rows = phase.tokens // length
    copies = round(rows * phase.copied)
    tokens, kinds = [], []
    if copies:
        text = hay.repeated_text(rng, rows=copies, length=length, farthest=min(128, length - 16))
        tokens.append(text.tokens)
        kinds.append((text.predictable * (1 + len(hay.PROBES))).astype(np.int32))
    if rows > copies:
        probes = hay.haystacks(rng, rows=rows - copies, length=length, counts=phase.counts)
        tokens.append(probes.tokens)
        kinds.append(answer_targets(probes))
    return np.concatenate(tokens), np.concatenate(kinds)


def main(argv: list[str]) -> None:
    """Trains, prints the curve, and writes the model with its curve."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        sys.exit(f"train.py takes no arguments, got {argv[1:]}")
    rng = np.random.default_rng(_SEED.value)
    base = matched_base(_LENGTH.value)
    dim = _WIDTH.value // _HEADS.value
    config = DecoderConfig(
        hay.VOCAB_SIZE,
        _WIDTH.value,
        2 * _WIDTH.value,
        _LAYERS.value,
        num_heads=_HEADS.value,
        num_kv_heads=_HEADS.value,
        head_dim=dim,
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )
    model = Decoder(config, rngs=nnx.Rngs(_SEED.value))
    model.embedding[...] = model.embedding[...] * 3
    if _INIT.value is not None:
        model = load_checkpoint(_INIT.value).model
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
    scheme = build(
        frequencies.rotary(dim, base=base, original_length=_LENGTH.value), num_heads=_HEADS.value, head_dim=dim
    )
    graph, state = nnx.split(model)
    decay = max(_STEPS.value // 3, 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(learning_rate=_RATE.value, b1=0.9, b2=0.98, weight_decay=0.01),
    )
    moments = optimizer.init(state)

    def group_loss(state, rows, kinds, weights):
        logits = nnx.merge(graph, state)(rows, scheme)[:, :-1]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1:, None], axis=-1)[..., 0]
        right = (jnp.argmax(logits, axis=-1) == rows[:, 1:]).astype(jnp.float32)
        of_kind = jax.nn.one_hot(kinds, 2 + len(hay.PROBES)).reshape(-1, 2 + len(hay.PROBES))
        return (losses * weights).sum(), (losses.ravel() @ of_kind, right.ravel() @ of_kind, of_kind.sum(0))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(state, moments, tokens, kinds, rate):
        weights = (kinds > 0) / jnp.maximum((kinds > 0).sum(), 1)

        # Gradients of a few hundred tokens at a time: on a CPU a batch takes longer than its rows one after another.
        at_once = math.gcd(tokens.shape[0], max(1, 256 // tokens.shape[1]))
        groups = jax.tree.map(lambda x: x.reshape(-1, at_once, x.shape[1]), (tokens, kinds, weights))

        def add(total, group):
            (_, seen), gradients = jax.value_and_grad(group_loss, has_aux=True)(state, *group)
            return jax.tree.map(jnp.add, total, (gradients, seen)), None

        nothing = (jax.tree.map(jnp.zeros_like, state), (jnp.zeros(2 + len(hay.PROBES)),) * 3)
        (gradients, seen), _ = jax.lax.scan(add, nothing, groups)
        moments[1].hyperparams["learning_rate"] = rate
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, seen

    command = shlex.join(["python", "experiments/train.py", *sys.argv[1:]])
    started, curve, index = time.monotonic(), [], 0
    window = np.zeros((3, 2 + len(hay.PROBES)))

    def run(tokens, kinds, rate):
        nonlocal state, moments, index, window
        state, moments, seen = step(state, moments, tokens, kinds, jnp.float32(rate))
        window += np.stack(seen)
        index += 1
        if index % 50:
            return None
        loss, right = window[0] / np.maximum(window[2], 1), window[1] / np.maximum(window[2], 1)
        names = [*hay.PROBES, "copy"]
        shown = {name: (round(float(loss[1 + i]), 3), round(float(right[1 + i]), 3)) for i, name in enumerate(names)}
        curve.append({"step": index, "seconds": round(time.monotonic() - started), **shown})
        print(
            index,
            round(time.monotonic() - started),
            *(f"{n} {a:.3f}/{b:.3f}" for n, (a, b) in shown.items()),
            flush=True,
        )
        window = np.zeros_like(window)
        return shown

    def save():
        out = Path(_OUT.value)
        trained = nnx.merge(graph, state)
        save_llama(
            out,
            trained,
            llama_config(trained, base=base, trained_length=_LENGTH.value),
            dtype=_DTYPE.value,
            metadata={"command": command, "jax": jax.__version__},
        )
        record = {
            "command": command,
            "jax": jax.__version__,
            "columns": "probe: [loss, nats; accuracy]",
            "curve": curve,
        }
        (out / "training.json").write_text(json.dumps(record) + "\n")

    phases = curriculum(_LENGTH.value, _STEPS.value, _EXTRAS.value)
    for number, phase in enumerate(phases if _INIT.value is None else phases[-1:]):
        print("phase", number, phase, flush=True)
        for count in range(phase.steps):
            tokens, kinds = batch_of(rng, phase, int(rng.choice(phase.lengths)))
            left = 1.0 if phase.until <= 1 else (phase.steps - count) / decay
            shown = run(tokens, kinds, _RATE.value * min(1.0, (index + 1) / 50, max(left, 0.02)))
            if shown and not len(curve) % 10:
                save()
            if shown and min(shown[name][1] for name in phase.judged) > phase.until:
                break
    save()


if __name__ == "__main__":
    app.run(main)
