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

from rope_jax.checkpoints.loading import load_checkpoint
from rope_jax.checkpoints.saving import llama_config, save_llama
from rope_jax.decoder import Schemes
from rope_jax.diagnosis.evaluation import kept_files
from rope_jax.diagnosis.evaluation.losses import next_token_losses
from rope_jax.diagnosis.evaluation.rows import summed_gradient
from rope_jax.diagnosis.tasks import contexts
from rope_jax.diagnosis.tasks.subject import Subject, answer_weights

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
    key = _key(subject, schemes, f"{name} {steps} {learning_rate} {seed}")
    directory = None if store is None else store / f"adapted-{key[:24]}"
    if directory is not None and kept_files.is_sealed(directory, key):
        model = load_checkpoint(directory).model
    else:
        model = _train(subject, schemes, steps, learning_rate, seed, on_step)
        if directory is not None:
            rotary = subject.checkpoint.positions.main_group.rotary
            assert rotary is not None
            assert rotary.base is not None
            save_llama(directory, model, llama_config(model, base=rotary.base, trained_length=subject.trained_length))
            kept_files.seal_directory(directory, key, ("config.json", "model.safetensors"))
    checkpoint = dataclasses.replace(subject.checkpoint, model=model, sha256=key)
    return dataclasses.replace(subject, checkpoint=checkpoint)


def _key(subject: Subject, schemes: Schemes, settings: str) -> str:
    told = {
        "made with": kept_files.made_with(subject.checkpoint),
        "subject": [subject.target_length, repr(subject.counts)],
        "settings": settings,
    }
    return kept_files.digest(told, schemes)


def _train(subject: Subject, schemes: Schemes, steps: int, learning_rate: float, seed: int, on_step):
    graph, state = nnx.split(subject.checkpoint.model)
    config = subject.checkpoint.config
    state = jax.tree.map(lambda x: x.astype(jnp.float32), state)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps), b2=0.98)
    )
    moments = optimiser.init(state)

    def loss(state, row, weights):
        return (next_token_losses(nnx.merge(graph, state), schemes, row[None])[0] * weights).sum()

    @jax.jit
    def step(state, moments, tokens, weights):
        gradient = summed_gradient(
            loss, state, (tokens, weights / weights.sum()), config=config, length=tokens.shape[1]
        )
        updates, moments = optimiser.update(gradient, moments, state)
        return optax.apply_updates(state, updates), moments

    rng = np.random.default_rng([_STREAM, seed])
    length, gap = subject.target_length, subject.trained_length // 2
    for number in range(steps):
        asked = subject.more_contexts(rng, rows=_ROWS, length=length)
        text = contexts.repeated_text(rng, rows=1, length=length, farthest=gap)
        tokens = np.concatenate([asked.tokens, text.tokens])
        # Copied tokens are many and easy: together they count as much as one row of answers.
        share = answer_weights(asked).sum(axis=1).mean() / text.predictable.sum()
        weights = np.concatenate([answer_weights(asked), share * text.predictable])
        state, moments = step(state, moments, jnp.asarray(tokens), jnp.asarray(weights, jnp.float32))
        on_step(number + 1)
    return nnx.merge(graph, state)
