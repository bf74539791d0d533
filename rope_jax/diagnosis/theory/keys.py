"""What every key of the inspection record means; `*` stands for a name that depends on the config, `[]` for a list."""

from collections.abc import Iterator, Mapping
from typing import Any

STATUS = "predicted, not measured"

KEYS: Mapping[str, str] = {
    "status": f"always {STATUS!r}: nothing here has seen a weight or a token",
    "plot": "file the plot was written to, or null",
    "model": "the model that was inspected",
    "model.origin": "file or preset the config was read from",
    "model.model_type": "the config's model_type",
    "model.dtype": "dtype the weights are declared in, or null",
    "model.original_length": "L, tokens the model was trained on before any length extension",
    "model.declared_length": "tokens the config says it serves",
    "model.target_length": "L', tokens it is asked to serve",
    "model.factor": "s = L'/L",
    "values": "every value used, by its short name",
    "values.*": "one value",
    "values.*.value": "the value",
    "values.*.value[]": "one entry of a list",
    "values.*.source": "the config key it was read from, or how it was derived",
    "without_effect": "keys about positions that change nothing here",
    "without_effect.*": "why the key has no effect",
    "findings": "what looks wrong or risky in the config, one line each",
    "findings[]": "one finding",
    "settings": "what the predictions assume",
    "settings.scaling": "rule of the status quo",
    "settings.scaling_source": "why that rule",
    "settings.bias": "bias of the status quo: none, alibi or t5",
    "settings.bias_source": "why that bias",
    "settings.amplitude": "A, nats: how far the rotary logit of a matching head can rise",
    "settings.amplitudes": "the amplitudes that scores and g50 are given for",
    "settings.amplitudes[]": "one amplitude, nats",
    "settings.noise": "sigma, nats: spread of one logit, in the just noticeable difference",
    "settings.pair_weights": "w: 'uniform', since a config says nothing about them",
    "settings.score": "what the number is that options are ranked by",
    "settings.offsets": "offsets of the main group at which curves are worked out, or null. All of them up to 131,072 "
    "(fewer for more than 128 pairs); beyond, blocks of 256 that stand for their surroundings, ever sparser with the "
    "distance to 0, to every Delta* and to the end: peak_offset, peak_coherence, g50, retained_mass and scores are "
    "then estimates",
    "layer_groups": "layers that share one scheme, under the status quo",
    "layer_groups[].name": "layer type",
    "layer_groups[].layers": "indices of its layers",
    "layer_groups[].layers[]": "one index",
    "layer_groups[].window": "sliding window in tokens, or null",
    "layer_groups[].reach": "largest number of offsets a query meets: the target length or the window",
    "layer_groups[].seen": "the same in training",
    "layer_groups[].num_heads": "query heads",
    "layer_groups[].head_dim": "dimensions of a head",
    "layer_groups[].rotary_dim": "d, dimensions that rotate; 0 where nothing does",
    "layer_groups[].base": "b, before scaling, or null",
    "layer_groups[].scaling": "rule applied to this group",
    "layer_groups[].hyperparameters": "values of that rule",
    "layer_groups[].hyperparameters.*": "one hyperparameter",
    "layer_groups[].hyperparameters.*[]": "one entry of a list",
    "layer_groups[].cos_sin_factor": "multiplies cos and sin; logits by its square",
    "layer_groups[].out_of_distribution_share": "share of (pair, offset) cells whose phase training never showed",
    "layer_groups[].fisher_ratio": "F/F0: sharpness of the positional kernel left after scaling",
    "layer_groups[].critical_dimension": "dimensions that complete a period in training, from base and length alone",
    "layer_groups[].classes": "number of pairs in each class",
    "layer_groups[].classes.*": "number of pairs",
    "layer_groups[].pairs": "one entry a rotary pair, from the fastest",
    "layer_groups[].pairs[].pair": "i",
    "layer_groups[].pairs[].wavelength": "2 pi / theta_i, tokens; null where the pair does not turn",
    "layer_groups[].pairs[].scaled_wavelength": "the same after scaling",
    "layer_groups[].pairs[].turns_seen": "periods completed over the offsets seen in training",
    "layer_groups[].pairs[].growth": "scaled wavelength over wavelength",
    "layer_groups[].pairs[].class": "interpolated, extrapolated, out of distribution, unchanged or still",
    "thresholds": "three different lambda for base scaling of the main group, or null where nothing rotates",
    "thresholds.period_match": "lambda whose longest wavelength grows by s; null for a single pair",
    "thresholds.no_cell_out_of_distribution": "smallest lambda with no cell out of distribution; null: none",
    "thresholds.content_never_negative": "smallest lambda found with B(m) = sum cos(m theta_i) >= 0 for all m <= L'",
    "thresholds.content_fails_again_at": "next larger lambda, up to twice that, at which B(m) dips below 0 again",
    "thresholds.content_scan_step": "ratio of neighbouring lambda in that scan, less 1",
    "thresholds.content_offsets": "offsets m looked at in that scan: all of them up to 1,048,576 (fewer for more than "
    "128 pairs); beyond, as many blocks of 256: a dip between them is missed, and both lambda are lower bounds",
    "bias": "the status-quo bias in the main group",
    "bias.kind": "none, alibi or t5",
    "bias.slopes": "m, nats per token, one a head, or null",
    "bias.slopes[]": "one slope",
    "bias.gentlest_slope": "the smallest: the head that options are scored with",
    "bias.horizons": "A/m, tokens a head: beyond it the bias outweighs the rotary logit; or null",
    "bias.horizons[]": "one horizon",
    "bias.heads_that_reach_target": "heads whose horizon is at least the target length",
    "bias.cost_at_original": "nats that the gentlest slope takes off at offset L - 1",
    "bias.cost_at_target": "the same at offset L' - 1",
    "bias.num_buckets": "T5 buckets, or null",
    "bias.max_distance": "T5's largest told-apart distance, or null",
    "bias.last_bucket_start": "offset from which T5 tells no two keys apart, or null",
    "bias.bucket_widths": "tokens in each one-sided T5 bucket but the last, or null",
    "bias.bucket_widths[]": "one width",
    "bias.note": "what is not known about it, or null",
    "entropy_cost": "ln(L'/L), nats a logit must gain to hold its share of attention",
    "warnings": "faults of an implementation that would look like a fault of the scheme",
    "warnings[].fault": "short name",
    "warnings[].message": "one line",
    "options": "status quo and the three options, best score first",
    "options[].rank": "1 is best",
    "options[].option": "status quo, or 1 (drop the bias), 2 (undo the scaling), 3 (another transform, same bias)",
    "options[].name": "scaling + bias",
    "options[].scaling": "its rule",
    "options[].hyperparameters": "values of that rule",
    "options[].hyperparameters.*": "one hyperparameter",
    "options[].hyperparameters.*[]": "one entry of a list",
    "options[].bias": "its bias",
    "options[].score": "the number it is ranked by: see settings.score",
    "options[].score_trained": "its half over offsets that were trained, or null",
    "options[].score_new": "its half over new offsets, or null where the context does not grow",
    "options[].scores": "the score at each amplitude",
    "options[].scores[].amplitude": "A, nats",
    "options[].scores[].score": "the score",
    "options[].scores[].score_trained": "its half over trained offsets",
    "options[].scores[].score_new": "its half over new offsets",
    "options[].effective_amplitude": "A times the square of the rule's cos/sin factor and its logit scale",
    "options[].out_of_distribution_share": "as in layer_groups, for this rule",
    "options[].fisher_ratio": "as in layer_groups, for this rule",
    "options[].just_noticeable_difference": "tokens one logit can tell apart, rotation and bias together; or null",
    "options[].curve": "one entry an offset Delta*",
    "options[].curve[].offset": "Delta*, tokens",
    "options[].curve[].trained": "whether Delta* < L: only then was there a relation to keep",
    "options[].curve[].coherence": "C(Delta* -> Delta*): how sharp the trained relation still is in its place, or null",
    "options[].curve[].peak_offset": "offset at which it is sharpest after the change, or null",
    "options[].curve[].peak_coherence": "C there, or null",
    "options[].curve[].g50": "tokens within which half of attention falls, for a head tuned under the new angles",
    "options[].curve[].g50_hot_swapped": "the same for a head tuned before the change (null where not trained)",
    "options[].curve[].retained_mass": "attention left within max(1, Delta*/4) of Delta*, worst case, hot-swapped",
    "options[].curve[].by_amplitude": "the last three at each amplitude",
    "options[].curve[].by_amplitude[].amplitude": "A, nats",
    "options[].curve[].by_amplitude[].g50": "tokens",
    "options[].curve[].by_amplitude[].g50_hot_swapped": "tokens, or null",
    "options[].curve[].by_amplitude[].retained_mass": "share of attention",
    "not_applicable": "options that make no sense for this model",
    "not_applicable[].name": "the option",
    "not_applicable[].reason": "why",
}

_NAMED = ("values", "without_effect", "hyperparameters", "classes")


def key_paths(record: Any, path: str = "") -> Iterator[str]:
    """Yields the documented form of every key in a record, `options[].curve[].offset`, with repeats."""
    if isinstance(record, Mapping):
        named = path.rsplit(".", 1)[-1] in _NAMED
        for key, value in record.items():
            inner = f"{path}.{'*' if named else key}" if path else key
            yield inner
            yield from key_paths(value, inner)
    elif isinstance(record, list | tuple):
        for value in record:
            if isinstance(value, Mapping):
                yield from key_paths(value, f"{path}[]")
            else:
                yield f"{path}[]"
