"""Rope keys of models that read images and sound too, whose positions are several streams: for text they are one."""

from rope_jax.checkpoints.ledger import Section, boolean, integer, list_of, number

__all__ = ["MULTIMODAL", "STREAM_SECTIONS", "STREAM_SWITCHES", "settle_streams"]

# With text alone the position streams of a multimodal model are equal, so it does not matter which pair follows which:
# these types turn text as the other type that is named beside them, or as "default".
MULTIMODAL = ("mrope", "xdrope")
STREAM_SECTIONS = ("mrope_section", "xdrope_section")
STREAM_SWITCHES = ("mrope_interleaved", "mrope_interleave", "use_mrope")


def settle_streams(rope: Section, *, declared: int, label: str) -> None:
    """Accounts for keys about positions in several axes, and for a length that a section repeats."""
    for key in STREAM_SECTIONS:
        section = rope.read(key, check=list_of(integer(0, 10**6)), name=label + key, default=False, off=True)
        if section is not None:
            rope.ledger.find(
                f"{key}: images and videos get positions in several axes; read here for text, where they agree"
            )
    for key in STREAM_SWITCHES:
        rope.read(key, check=boolean, name=label + key, default=False)
    extrapolation = rope.read("extrapolation_factor", check=number(0, 1e6), default=False, off=True)
    if extrapolation not in (None, 1.0):
        raise rope.error("extrapolation_factor", "only 1 is read: another would blend the frequencies otherwise")
    repeated = rope.read(
        "max_position_embeddings", check=integer(1, 2**31 - 1), name="length in the section", default=False
    )
    rope.ledger.values.pop("length in the section", None)
    if repeated is not None and repeated != declared:
        rope.pass_over("max_position_embeddings", "the length at the top level counts")
    elif repeated is not None:
        rope.ignore("max_position_embeddings", "repeats the one at the top level")
