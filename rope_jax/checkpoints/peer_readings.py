"""One config as several programs read it, and how far the angles of each are from the config's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rope_jax.checkpoints.dialects import positions_of
from rope_jax.checkpoints.extending import trained_length
from rope_jax.checkpoints.peer_coverage import check_config, check_keys
from rope_jax.checkpoints.peer_records import Given, Keys, Read
from rope_jax.checkpoints.peers import PEERS
from rope_jax.checkpoints.positions import LayerGroup, PositionConfig
from rope_jax.checkpoints.rope_types import ALIASES, ORIGINAL
from rope_jax.errors import InputError, RopeJaxError, UnsupportedError
from rope_jax.frequencies import Rotary

_SAME = 1e-9  # relative; what rounding makes of a number that was written and read


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one reading is from the config's own, for sequences of one length.

    Attributes:
      length: tokens.
      phase: the largest difference of an angle at the offset of the whole length, radians.
      frequency: the largest relative difference of a frequency.
      factor: what the cos/sin factor is multiplied by.
    """

    length: int
    phase: float
    frequency: float
    factor: float

    @property
    def none(self) -> bool:
        return self.frequency <= _SAME and abs(self.factor - 1) <= _SAME


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One peer's reading of the layers of one type.

    Attributes:
      peer: its name and version.
      layer_type: the type of the layers.
      differences: at the length before any extension, the trained and the target length, as far as these differ; none
        where the peer stops with an error.
      inverse_frequencies: those it uses at the target length.
      cos_sin_factor: the same.
      reasons: what it does otherwise, each with the file that does it; the error where it stops.
    """

    peer: str
    layer_type: str
    differences: tuple[Difference, ...]
    inverse_frequencies: Float[np.ndarray, " pairs"] | None
    cos_sin_factor: float | None
    reasons: tuple[str, ...]

    @property
    def same(self) -> bool:
        return bool(self.differences) and all(one.none for one in self.differences)


def readings(
    config: Mapping[str, Any], peers: Sequence[str], *, target_length: int, origin: str = "config"
) -> list[Reading]:
    r"""Returns how each of several programs reads a config's rope keys, beside what the config says.

    .. math:: \text{phase} = \max_i |\theta^{peer}_i - \theta_i| \, L

    Args:
      config: the content of a `config.json`.
      peers: names of `PEERS`.
      target_length: `L'`, tokens that are to be served.
      origin: the config's name, for messages.

    Raises:
      InputError: if there is no such peer, or the target is below the trained length.
      UnsupportedError: if the peers' code for the model type was not read, or the config uses what is not covered.
      ConfigError: if the config cannot be understood.

    >>> config = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2,
    ...           "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    >>> [(one.peer, one.same) for one in readings(config, ["vllm", "mlx"], target_length=8192)]
    [('vllm 0.33.0', True), ('mlx 0.32.2', False)]
    """
    for name in peers:
        if name not in PEERS:
            raise InputError(f"as: unknown reader {name!r}; there are: {', '.join(PEERS)}")
    positions = positions_of(config, origin=origin)
    trained = trained_length(positions)
    if target_length < trained:
        raise InputError(f"target_length {target_length} is below the trained length {trained}")
    content = _text_model(config)
    check_config(content, positions)
    lengths = sorted({positions.original_length, trained, target_length})
    found = []
    for group in positions.groups:
        keys = _keys_of(content, group, positions)
        own = {length: _record(group, length) for length in lengths}
        for name in dict.fromkeys(peers):
            given = [
                Given(
                    model_type=positions.model_type,
                    layer_type=group.name,
                    keys=keys,
                    content=content,
                    head_dim=group.head_dim,
                    declared=_declared(content),
                    target=target_length,
                    length=length,
                )
                for length in lengths
            ]
            found.append(_reading(name, group, given, own))
    return found


def _reading(name: str, group: LayerGroup, given: Sequence[Given], own: Mapping[int, Rotary]) -> Reading:
    peer = PEERS[name]
    title = f"{name} {peer.version}"
    read: list[Read] = [peer.read(one) for one in given]
    reasons = tuple(dict.fromkeys(reason for one in read for reason in one.reasons))
    records = []
    for one, at in zip(read, given, strict=True):
        if one.keys is None:
            return Reading(title, group.name, (), None, None, one.reasons)
        records.append(_read_back(one.keys, group, at.declared, at.length))
    differences = tuple(
        _difference(record, own[at.length], at.length) for record, at in zip(records, given, strict=True)
    )
    last = records[-1]
    found = Reading(title, group.name, differences, last.inverse_frequencies, last.cos_sin_factor, reasons)
    return dataclasses.replace(found, reasons=()) if found.same else found


def _difference(found: Rotary, own: Rotary, length: int) -> Difference:
    apart = np.abs(found.inverse_frequencies - own.inverse_frequencies)
    apart = np.where(apart <= _SAME * own.inverse_frequencies, 0.0, apart)
    return Difference(
        length=length,
        phase=float(apart.max() * length),
        frequency=float((apart / own.inverse_frequencies).max()),
        factor=float(found.cos_sin_factor / own.cos_sin_factor),
    )


def _keys_of(content: Mapping[str, Any], group: LayerGroup, positions: PositionConfig) -> Keys:
    """Returns the rope keys of a layer type as transformers 5 writes them, checked against how they were read."""
    assert group.rotary is not None
    keys: Keys = {}
    for name in ("rope_scaling", "rope_parameters"):
        stated = content.get(name) or {}
        nested = any(isinstance(value, Mapping) for value in stated.values())
        keys |= (stated.get(group.name) or {}) if nested else stated
    if group.rule.name == "none":
        keys = {"rope_type": "default"}
    stated_type = str(keys.pop("type", "default"))
    kind = str(keys.setdefault("rope_type", stated_type))
    keys |= {"rope_type": ALIASES.get(kind, kind), "rope_theta": group.rotary.base}
    check_keys(keys, content, positions, group.name)
    if keys["rope_type"] in ("llama3", "yarn", "longrope"):  # as transformers 5 fills it in
        keys.setdefault(ORIGINAL, _declared(content))
    length = positions.declared_length
    try:
        apart = _difference(_read_back(keys, group, _declared(content), length), _record(group, length), length)
    except RopeJaxError as error:
        raise UnsupportedError(f"{positions.origin}: {group.name} layers are not covered by --as: {error}") from None
    if not apart.none:
        raise UnsupportedError(
            f"{positions.origin}: {group.name} layers are not covered by --as: no plain rope section"
        )
    return keys


def _read_back(keys: Keys, group: LayerGroup, declared: int, length: int) -> Rotary:
    """Returns what transformers 5 makes of rope keys at a length."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "hidden_size": group.head_dim,
        "max_position_embeddings": declared,
        "rope_parameters": keys,
    }
    return _record(positions_of(config, origin="the same keys").groups[0], length)


def _record(group: LayerGroup, length: int) -> Rotary:
    record = group.scaled_at(length)
    assert record is not None  # of all model types that are covered, every layer turns
    return record


def _text_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _declared(content: Mapping[str, Any]) -> int:
    return int(content["max_position_embeddings"])


def record_of(found: Sequence[Reading]) -> list[dict[str, Any]]:
    """Returns plain values, ready for JSON; frequencies unrounded, phases in radians."""
    return [
        {
            "peer": one.peer,
            "layer_type": one.layer_type,
            "same": one.same,
            "differences": [dataclasses.asdict(each) for each in one.differences],
            "inverse_frequencies": None if one.inverse_frequencies is None else one.inverse_frequencies.tolist(),
            "cos_sin_factor": one.cos_sin_factor,
            "reasons": list(one.reasons),
        }
        for one in found
    ]
