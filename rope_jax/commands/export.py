"""`rope-jax export`: writes a chosen scaling as the config of transformers or a server, read back before it counts.

Starts without JAX.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from rope_jax import scaling
from rope_jax.checkpoints.dialects import positions_of, read_config, read_positions
from rope_jax.checkpoints.exporting import PEER_NAMES, Exported, PeerName, Wanted, export_config, wanted_scaling
from rope_jax.checkpoints.extending import trained_length
from rope_jax.checkpoints.peer_readings import readings
from rope_jax.checkpoints.peers import PEERS
from rope_jax.checkpoints.positions import PositionConfig
from rope_jax.checkpoints.presets import preset
from rope_jax.checkpoints.reading_back import largest_difference
from rope_jax.commands.factors_file import read_factors
from rope_jax.commands.flags import Define, config_of
from rope_jax.commands.output_file import checked_file, replacing
from rope_jax.commands.server_calls import llama_cpp_call, vllm_call
from rope_jax.diagnosis.theory.extension import LARGEST_TARGET
from rope_jax.errors import InputError, RopeJaxError, UnsupportedError, named
from rope_jax.rules import Rule

SUMMARY = "write a chosen scaling as the config of transformers or a server, read it back and compare"
USAGE = "rope-jax export (--preset=NAME | CONFIG) --to=PEER --scaling=NAME --target_length=TOKENS --out=FILE [flags]"
LARGEST_DIFFERENCE = 1e-6  # relative


def define_flags(define: Define) -> None:
    """Declares the command's flags."""
    define.enum("to", None, list(PEER_NAMES), "Who is to read the config; required.")
    define.string(
        "scaling",
        None,
        "Scaling to write; a wrong name lists them. It takes the place of one that the config declares, its factor "
        "then against the length before that; none keeps the declared one.",
    )
    define.string(
        "factors",
        None,
        "In place of --scaling: a JSON file, the list f or an object with it as 'factors' (and perhaps an "
        "'attention_factor') or what a search without a bias wrote, one number a rotary pair; theta becomes theta / f.",
    )
    define.boolean(
        "compose", False, "The scaling comes on top of one that the config declares, rather than in its place."
    )
    define.integer("target_length", None, "Tokens to be served; required.")
    define.integer(
        "trained_length", None, "Tokens the model was trained on; default: the config's, with a scaling it declares."
    )
    define.string(
        "out",
        None,
        "File to write, required. A regular file already there is replaced, the config itself is not; through a "
        "symbolic link, what it points to is written.",
    )
    define.string("preset", None, "A built-in model, not a config file; an unknown name lists them.")
    define.enum("bias", "none", ["none", "alibi", "t5"], "Bias of the fix; no reader has one, so only none is written.")


def run(arguments: list[str], flags: absl_flags.FlagValues) -> int:
    """Runs the command; returns the exit status."""
    source, out = _checked(arguments, flags)
    if source is None:
        with named("preset"):
            config, origin = preset(flags.preset), f"preset {flags.preset}"
    else:
        config, origin = read_config(source), os.fspath(source)
    positions = positions_of(config, origin=origin)
    trained = trained_length(positions) if flags.trained_length is None else flags.trained_length
    if flags.target_length < trained:
        raise InputError(
            f"--target_length={flags.target_length} is below the {trained} tokens that {origin} was trained on: "
            "nothing is extended"
        )
    scaling = _scaling(flags)
    lengths = {"trained_length": trained, "target_length": flags.target_length}
    try:
        wanted = wanted_scaling(positions, scaling, **lengths, compose=flags.compose)
        exported = export_config(config, positions, wanted, peer=flags.to)
    except RopeJaxError as error:
        asked = f"--factors={flags.factors}" if flags.factors else f"--scaling={flags.scaling}"
        raise InputError(f"{asked}: {error}") from None
    difference, after = _write(out, flags.out, exported.config, positions, wanted, flags.to)
    declared = None if wanted.group.rule.name == "none" else wanted.group.rule.name
    record = {  # lengths in tokens, factors and differences unrounded
        "out": flags.out,
        "to": flags.to,
        "origin": positions.origin,
        "model_type": positions.model_type,
        "scaling": flags.scaling or "per_pair",
        "on_top_of": None if wanted.replaces else declared,
        "in_place_of": declared if wanted.replaces else None,
        **lengths,
        "factor": wanted.target_length / wanted.trained_length,
        "rope_type": exported.section["rope_type"],
        "how": exported.how,
        "rope_parameters": exported.section,
        "largest_relative_difference": difference,
        "notes": _notes(positions, trained, wanted, exported, after),
        "vllm_command": vllm_call(source, wanted, exported) if flags.to == "vllm" else None,
        "llama_cpp_command": llama_cpp_call(wanted, exported) if flags.to == "llama.cpp" else None,
    }
    print(json.dumps(record, allow_nan=False) if flags.json else _text(record))
    return 0


def kept(arguments: list[str], flags: absl_flags.FlagValues) -> str:
    """Returns what is kept of a run that was stopped."""
    return "an export takes seconds and keeps nothing; its file is as it was, or whole: run it again"


def _checked(arguments: list[str], flags: absl_flags.FlagValues) -> tuple[pathlib.Path | None, pathlib.Path]:
    """Returns the config's path, or None for a preset, and where the result goes, before any work is done."""
    for name in ("to", "target_length", "out"):
        if getattr(flags, name) in (None, ""):
            raise InputError(f"--{name} is required: {USAGE}")
    if (flags.scaling is None) == (flags.factors is None):
        raise InputError(
            "give either --scaling=NAME or --factors=FILE" + (", not both" if flags.factors is not None else "")
        )
    for name in ("target_length", "trained_length"):
        value = getattr(flags, name)
        if value is not None and not 2 <= value <= LARGEST_TARGET:
            raise InputError(f"--{name} must lie in 2 ... {LARGEST_TARGET}, got {value}")
    if flags.factors == "":
        raise InputError("--factors is empty: name a JSON file")
    if flags.bias != "none":
        raise InputError(
            f"--bias={flags.bias}: {flags.to} has no key that adds a bias to the attention of a model with rotary "
            "embeddings; only --bias=none can be exported"
        )
    path = config_of(arguments, flags)
    source = None if path is None else pathlib.Path(path)
    if source is not None:
        # Unlike pathlib, os.path does not raise where a name is too long.
        if not os.path.exists(source):
            raise InputError(f"no such config file: {source}")
        source = source / "config.json" if os.path.isdir(source) else source
    inputs = [path for path in (source, flags.factors) if path is not None]
    return source, checked_file(flags.out, flag="--out", inputs=inputs)


def _scaling(flags: absl_flags.FlagValues) -> str | Rule:
    """Returns the name of the scaling that is asked for, or the rule of factors from a file."""
    if flags.scaling is not None:
        if flags.scaling == "config":
            raise InputError("--scaling=config: name a scaling, or none to keep what the config declares")
        return flags.scaling
    factors, attention_factor = read_factors(pathlib.Path(flags.factors))
    return scaling.per_pair(factors=factors, attention_factor=attention_factor)


def _write(
    target: pathlib.Path,
    out: str,
    config: Mapping[str, Any],
    positions: PositionConfig,
    wanted: Wanted,
    peer: PeerName,
) -> tuple[float, PositionConfig]:
    """Writes the config whole or not at all: it is moved into place once it was read back and agrees.

    Returns:
      the largest relative difference, and what the written config says.
    """
    trained, longest = wanted.trained_length, wanted.target_length
    lengths = sorted({1, trained, min(trained + 1, longest), (trained + longest) // 2, longest})
    with replacing(target, named=f"--out={out}", suffix=".json") as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            after = read_positions(os.fspath(temporary))
            difference = largest_difference(positions, wanted, after, lengths=lengths)
        except RopeJaxError as error:
            said = str(error).replace(os.fspath(temporary), out)
            raise InputError(f"--out={out}: not written, since it does not read back: {said}") from None
        if not difference <= LARGEST_DIFFERENCE:
            raise InputError(
                f"--out={out}: not written, since what was read back differs by {difference:.1e} (relative) from the "
                f"scaling that was asked for, by more than {LARGEST_DIFFERENCE:g}"
            )
        _check_peer(config, after, wanted, peer, out)
    return difference, after


def _check_peer(config: Mapping[str, Any], after: PositionConfig, wanted: Wanted, peer: PeerName, out: str) -> None:
    """Raises `InputError` where the peer's own code would not read the written config as the strict reader does."""
    if peer == "transformers":
        return  # the strict reader is held to it
    longest = max(wanted.target_length, after.declared_length)
    try:
        found = readings(config, [peer], target_length=longest, origin=out)
    except UnsupportedError as error:
        if peer == "vllm":
            return  # what is known of the others was refused by rope type
        raise InputError(f"--to={peer}: not written: {error}") from None
    for one in found:
        if not one.same:
            phase = max((each.phase for each in one.differences), default=None)
            far = "" if phase is None else f", angles by up to {phase:.3g} radians"
            raise InputError(
                f"--to={peer}: not written, since {peer} {PEERS[peer].version} would read {one.layer_type} layers "
                f"otherwise{far}: {'; '.join(one.reasons)}"
            )


def _notes(
    positions: PositionConfig, length: int, wanted: Wanted, exported: Exported, after: PositionConfig
) -> list[str]:
    notes = []
    declared = wanted.group.rule.name
    if wanted.replaces:
        notes.append(
            f"{wanted.rules[0].name} takes the place of the config's own {declared}: its factor is against the "
            f"{wanted.trained_length} tokens before any extension (--compose puts it on top instead)"
        )
    elif declared != "none" and len(wanted.rules) == 2:
        notes.append(
            f"{wanted.rules[1].name} stacks on the config's own {declared}, with which the model counts as trained up "
            f"to {length} tokens"
        )
    elif declared != "none":
        notes.append(f"nothing was added to the config's own {declared}")
    kind = exported.section["rope_type"]
    if kind == "default" and wanted.target_length != length:
        notes.append(f"the config no longer says that the model was trained on {length} tokens")
    if kind in ("linear", "dynamic"):
        notes.append("max_position_embeddings is the trained length, as readers of this rope type take it")
    if kind == "dynamic":
        notes.append("a dynamic base changes with the length: transformers leaves keys cached at a shorter one as is")
    if positions.origin.startswith("preset "):
        notes.append("a preset knows what positions depend on only: the other keys of a config are missing")
    before = {layer: group.window for group in positions.groups for layer in group.layers}
    cut = sum(group.window != before[layer] for group in after.groups for layer in group.layers)
    if cut:
        notes.append(f"the sliding window, no shorter than the old context, cuts the new one in {cut} layers")
    return notes


def _text(record: Mapping[str, Any]) -> str:
    lines = [
        f"{record['out']}: {record['scaling']} for {record['to']}, as {record['how']}",
        f"  {record['model_type']} of {record['origin']}: trained on {record['trained_length']} tokens, to serve "
        f"{record['target_length']}, a factor of {record['factor']:g}",
        f"  read back: frequencies, cos/sin factor and logit scale differ by at most "
        f"{record['largest_relative_difference']:.1e} (relative) from what was asked for",
        *(f"  note: {note}" for note in record["notes"]),
    ]
    for name, source in (("vllm_command", "the old config"), ("llama_cpp_command", "a GGUF file of the old config")):
        if record[name] is not None:
            lines += [f"without the file, from {source}:", record[name]]
    return "\n".join(lines)
