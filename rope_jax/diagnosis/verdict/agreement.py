"""What several verdicts say together: models that agree, and deployed configurations that fail alike."""

from collections import Counter
from collections.abc import Sequence

from rope_jax.diagnosis.evaluation.panel import PRECISION
from rope_jax.diagnosis.verdict import wording
from rope_jax.diagnosis.verdict.answers import Verdict

__all__ = ["agreement", "shared_suspect"]

_OTHERS = "Each is judged by itself, and nothing is said of other models."


def agreement(verdicts: Sequence[Verdict]) -> str:
    """Returns how many models say the same, in words; "" for one.

    Args:
      verdicts: on one deployed configuration, one a model.
    """
    if len(verdicts) < 2:
        return ""
    regressions = Counter(one.regression.answer for one in verdicts)
    firsts = Counter(one.first for one in verdicts)
    total = len(verdicts)
    answers = "; ".join(f"{answer} for {count} of {total}" for answer, count in regressions.most_common())
    said = "; ".join(f"'{first}' for {count} of {total}" for first, count in firsts.most_common())
    return f"To try first: {said} models. The regression described: {answers}. {_OTHERS}"


def shared_suspect(verdicts: Sequence[Verdict]) -> str:
    """Returns what deployed configurations that fail alike have in common, or "".

    They fail alike where each is known to lose the same tasks, and no two fall by amounts whose intervals are apart.
    What they share is then suspect, not convicted: each may have a cause of its own that weighs the same.

    Args:
      verdicts: one a deployed configuration, of the same models.
    """
    if len(verdicts) < 2 or not verdicts[0].regression.lost:
        return ""
    lost = verdicts[0].regression.lost
    if any(set(one.regression.lost) != set(lost) for one in verdicts) or not _fall_alike(verdicts, lost):
        return ""
    names = wording.listed([f"'{one.deployed}'" for one in verdicts])
    falls = []
    for task in lost:
        amounts = ", ".join(wording.interval(one.regression.falls[task].log_odds) for one in verdicts)
        falls.append(f"{wording.named(task)} ({amounts} nats)")
    shared = _shared_parts([one.deployed for one in verdicts])
    also = f"their {wording.listed(shared)}, " if shared else ""
    said = (
        f"{names} fail alike: each loses {wording.listed(falls)}. What they share is suspect: {also}the target length, "
        "the model and the implementation."
    )
    parts = {one.cause.part if one.cause.ahead is not None else "not resolved" for one in verdicts}
    if parts in ({"bias"}, {"scaling"}):
        (part,), (other,) = parts, {"bias", "scaling"} - parts
        said += f" By the 2 x 2 the {part} costs more than the {other} in each of them."
    if not any(task in lost for task in PRECISION):
        said += " Neither event order nor binding is known to be lost."
    return said


def _fall_alike(verdicts: Sequence[Verdict], lost: Sequence[str]) -> bool:
    for task in lost:
        falls = [one.regression.falls[task].log_odds for one in verdicts]
        ends = [(fall.low, fall.high) for fall in falls if fall.low is not None and fall.high is not None]
        if len(ends) < len(falls) or max(low for low, _ in ends) > min(high for _, high in ends):
            return False
    return True


def _shared_parts(names: Sequence[str]) -> list[str]:
    """Returns the parts that all names have.

    >>> _shared_parts(["ntk + alibi", "ntk + t5"]), _shared_parts(["ntk + none", "yarn + none"])
    (['ntk'], [])
    """
    parts = [[part.strip() for part in name.split(" + ")] for name in names]
    return [part for part in parts[0] if part != "none" and all(part in others for others in parts)]
