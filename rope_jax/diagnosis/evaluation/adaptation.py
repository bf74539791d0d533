"""Adapted configurations: the same weights trained on for a few steps at the target length, under one scheme.

Zero-shot and fine-tuned are different questions: what a scheme breaks at once, a short training may repair.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.evaluation.losses import loss_gradient
from rope_jax.diagnosis.tasks.subject import Subject

_ROWS = 3  # contexts a step, and one row of text beside them
_STREAM = 2**31  # items to adapt on come from seeds that no evaluation uses


def adapted(
    subject: Subject,
    schemes: Schemes,
    *,
    name: str,
    steps: int,
    learning_rate: float = 3e-4,
    seed: int = 0,
    store: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Subject:
    """Returns the subject with weights adapted to `schemes` at its target length, judged on the same items.

    Answers and copied tokens count, as in the training of a bundled test model; Adam, its
    rate falling to zero by a cosine.

    Args:
      subject: a bundled test model; its items stay.
      schemes: what the model runs under while it is adapted.
      name: of the configuration, which sets its weights apart from others.
      steps: of Adam, on four rows each.
      learning_rate: the first step's.
      seed: of the rows that are adapted on, disjoint from all that is evaluated.
      store: directory of finished weights, so that a run that was cut off goes on; None for none.
      on_step: called after each step.
    """
    described = {
        "made with": kept_files.made_with(subject.checkpoint),
        "subject": [subject.target_length, repr(subject.counts)],
        "settings": f"{name} {steps} {learning_rate} {seed}",
    }
    key = kept_files.digest(described, schemes)
    graph, state = nnx.split(subject.checkpoint.model)
    leaves, structure = jax.tree.flatten(state)

    def train() -> dict[str, np.ndarray]:
        wide = jax.tree.unflatten(structure, [leaf.astype(jnp.float32) for leaf in leaves])
        trained = _train(subject, graph, wide, schemes, steps, learning_rate, seed, on_step)
        return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(trained))}

    kept = kept_files.taken_or_made(store, f"weights-{key[:24]}.npz", key, train)
    state = jax.tree.unflatten(structure, [jnp.asarray(kept[str(number)]) for number in range(len(leaves))])
    checkpoint = dataclasses.replace(subject.checkpoint, model=nnx.merge(graph, state), sha256=key)
    return dataclasses.replace(subject, checkpoint=checkpoint)


def _train(subject: Subject, graph, state, schemes: Schemes, steps: int, learning_rate: float, seed: int, on_step):
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps), b2=0.98)
    )
    moments = optimiser.init(state)

    @jax.jit
    def step(state, moments, tokens, weights):
        gradient = loss_gradient(lambda state: (nnx.merge(graph, state), schemes), state, tokens, weights)
        updates, moments = optimiser.update(gradient, moments, state)
        return optax.apply_updates(state, updates), moments

    rng = np.random.default_rng([_STREAM, seed])
    for number in range(steps):
        tokens, weights = subject.practice(rng, rows=_ROWS, text_rows=1)
        state, moments = step(state, moments, jnp.asarray(tokens), jnp.asarray(weights, jnp.float32))
        on_step(number + 1)
    return state
