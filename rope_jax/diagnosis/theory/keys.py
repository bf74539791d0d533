"""What every key of the inspection record means; `*` stands for a name that depends on the config, `[]` for a list."""

from collections.abc import Iterator, Mapping
from typing import Any

STATUS = "predicted, not measured"

_FACTS = {
    "base_before": "b as trained, or null where nothing rotates",
    "base_after": "b as deployed",
    "pairs_unchanged": "pairs that keep their wavelength",
    "least_growth": "wavelength as deployed over as trained, least of all pairs",
    "largest_growth": "the same, largest; null where a pair stops rotating",
    "logit_factor": "temperature: multiplies the logits of rotating dimensions, against as trained",
    "pairs_out": "pairs that reach phases training never showed",
    "out_of_distribution_share": "share of (pair, offset) combinations whose phase training never showed",
    "fisher_ratio": "F/F0: sharpness of the positional kernel left after scaling",
}

KEYS: Mapping[str, str] = {
    "status": f"always {STATUS!r}: nothing here has seen a weight or a token",
    "plot": "file the plot was written to, or null",
    "summary": "the first lines of the text",
    "summary[].heading": "what a line is about; empty where it goes on with the one before",
    "summary[].text": "the line",
    "next": "the command that measures what is predicted here",
    "model": "the model that was inspected",
    "model.origin": "file or preset the config was read from",
    "model.path": "the path that was given, or null",
    "model.model_type": "the config's model_type",
    "model.dtype": "dtype the weights are declared in, or null",
    "model.original_length": "tokens the model was trained on before any length extension",
    "model.trained_length": "L, tokens it natively serves: up to the length of a declared scaling",
    "model.trained_length_given": "whether L was given rather than read",
    "model.trained_base_given": "base that was given in place of the config's, or null",
    "model.declared_length": "tokens the config says it serves",
    "model.declared_scaling": "rule that the config declares, or none",
    "model.declared_factor": "its factor, or null",
    "model.target_length": "L', tokens it is asked to serve",
    "model.ratio": "L'/L",
    "model.extended": "whether any query meets more offsets than in training",
    "deployed": "the configuration deployed at the target length, and what predictions assume",
    "deployed.scaling": "its scaling, as a flag has it",
    "deployed.scaling_source": "why that scaling",
    "deployed.compose": "whether it comes on top of a declared scaling, rather than in its place",
    "deployed.factor": "s: L' over L, or over the original length where a declared scaling is replaced",
    "deployed.bias": "its bias, as a flag has it",
    "deployed.amplitude": "A, nats: how far the rotary logit of a matching head can rise; for horizons",
    "deployed.pair_weights": "'uniform', since a config says nothing about them",
    "entropy_cost": "ln(offsets met / offsets trained), nats a logit must gain to hold its share of attention",
    "thresholds": "bases to set in place of any scaling (main group), or null where nothing is extended or rotates",
    "thresholds.*": "period_match: the longest wavelength grows by L' over the original length. "
    "no_pair_out_of_distribution: the smallest without such a pair. content_never_negative: the smallest found with "
    "B(m) = sum cos(m theta_i) >= 0 for all m <= L'",
    "thresholds.*.multiplier": "lambda, on the base before any scaling; null: none",
    "thresholds.*.base": "the base itself",
    "thresholds.*.fails_again_at": "next larger base, up to twice that, at which B(m) dips below 0 again, or null",
    "thresholds.*.scan_step": "ratio of neighbouring bases in that scan, less 1",
    "thresholds.*.offsets": "offsets m tried in that scan: all of them up to 1,048,576 (fewer for more than 128 "
    "pairs); beyond, as many in blocks of 256: a dip between them is missed, and both bases are lower bounds",
    "bias": "the deployed bias in the main group",
    "bias.name": "as a flag has it",
    "bias.source": "why that bias",
    "bias.declared": "whether the config declares it, so that the weights were trained with it",
    "bias.slopes": "m, nats per token, one a head, or null",
    "bias.horizons": "tokens a head from which on the bias outweighs A (A/m for slopes), or null",
    "bias.heads_that_reach_target": "heads whose horizon is at least the target length",
    "bias.taken_at_trained": "nats that the head with the weakest bias loses at the last trained offset",
    "bias.taken_at_target": "the same at the last offset",
    "bias.num_buckets": "T5 buckets, or null",
    "bias.max_distance": "T5's largest distinguished distance, or null",
    "bias.last_bucket_start": "offset from which T5 distinguishes no two keys, or null",
    "bias.bucket_widths": "tokens in each one-sided T5 bucket but the last, or null",
    "bias.note": "what is not known about it, or null",
    "options": "the deployed configuration and what may be put in its place, unranked",
    "options[].change": "deployed, or 1 (drop bias), 2 (undo scaling), 3 (change scaling), or two of them",
    "options[].name": "scaling + bias",
    "options[].scaling": "its scaling, as a flag has it",
    "options[].hyperparameters": "values of that rule",
    "options[].bias": "its bias",
    **{f"options[].{key}": meaning for key, meaning in _FACTS.items()},
    "options[].curve": "what is left of relations that were trained, one entry an offset Delta*",
    "options[].curve[].offset": "Delta*, tokens",
    "options[].curve[].coherence": "C(Delta* -> Delta*): how sharp the relation still is in its place; 1 is untouched",
    "options[].curve[].peak_offset": "offset at which it is sharpest after the change. Every offset up to 131,072 is "
    "tried (fewer for more than 128 pairs), beyond as many in blocks of 256, Delta* among them: then an estimate",
    "options[].curve[].peak_coherence": "C there",
    "unranked": "why the options are in no order",
    "not_applicable": "options that make no sense for this model",
    "not_applicable[].name": "the option",
    "not_applicable[].reason": "why",
    "faults": "faults of an implementation that would look like a fault of the scheme",
    "faults[].fault": "short name",
    "faults[].message": "one line",
    "main_group": "index of the layers that see the whole context",
    "layer_groups": "layers that share one scheme, as deployed",
    "layer_groups[].name": "layer type",
    "layer_groups[].layers": "indices of its layers",
    "layer_groups[].window": "sliding window in tokens, or null",
    "layer_groups[].reach": "number of offsets a query meets: the target length or the window",
    "layer_groups[].seen": "the same in training",
    "layer_groups[].num_heads": "query heads",
    "layer_groups[].head_dim": "dimensions of a head",
    "layer_groups[].rotary_dim": "d, dimensions that rotate; 0 where nothing does",
    "layer_groups[].scaling": "rule applied to this group",
    "layer_groups[].hyperparameters": "values of that rule",
    "layer_groups[].cos_sin_factor": "multiplies cos and sin; logits by its square",
    **{f"layer_groups[].{key}": meaning for key, meaning in _FACTS.items()},
    "layer_groups[].critical_dimension": "dimensions that complete a period in training, from base and length alone",
    "layer_groups[].classes": "number of pairs in each class",
    "layer_groups[].pairs": "one entry a rotary pair, from the fastest",
    "layer_groups[].pairs[].pair": "i",
    "layer_groups[].pairs[].wavelength": "2 pi / theta_i, tokens, as trained; null where the pair does not rotate",
    "layer_groups[].pairs[].scaled_wavelength": "the same as deployed",
    "layer_groups[].pairs[].turns_seen": "periods completed over the offsets seen in training",
    "layer_groups[].pairs[].growth": "wavelength as deployed over as trained",
    "layer_groups[].pairs[].class": "interpolated, extrapolated, out of distribution, unchanged or still",
    "values": "every value used, by its short name",
    "values.*": "one value",
    "values.*.value": "the value",
    "values.*.source": "the config key it was read from, or how it was derived",
    "without_effect": "keys about positions that change nothing here",
    "findings": "what looks wrong or risky in the config, one line each",
}

_NAMED = ("values", "thresholds")
_FREE = ("hyperparameters", "classes", "without_effect")


def key_paths(record: Any, path: str = "") -> Iterator[str]:
    """Yields the documented form of every key in a record, `options[].curve[].offset`, with repeats."""
    name = path.rsplit(".", 1)[-1]
    if isinstance(record, Mapping) and name not in _FREE:
        for key, value in record.items():
            inner = f"{path}.{'*' if name in _NAMED else key}" if path else key
            yield inner
            yield from key_paths(value, inner)
    elif isinstance(record, list | tuple):
        for value in record:
            yield from key_paths(value, f"{path}[]")
