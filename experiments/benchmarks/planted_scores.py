"""Finished cases on disk, one JSON line each, and how often the verdict was right: all of it from the lines alone.

Removing the plant wins back so much; where that is more than the margin, something is *recoverable*.

- Component named: the one whose removal wins back most, or at least half as much. The verdict names the implementation
  where it says to repair first; a temperature where undoing that beats all of the three changes with P >= .95; else the
  part that the 2 x 2 blames, or both; else the part that the first change is of.
- Recovers most: the change named first wins back at least half of what removing the plant does.
- Wrong: it does not, and was named with P(first) >= .95 (a repair: significantly more than the margin).
- Null: neither removing the plant nor any change wins back more than the margin. A false alarm is a first change whose
  whole interval of gain lies above the margin there, or a repair that comes first.

A case in which the plant costs little, but some change wins back more than the margin all the same, is none of these.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from planted_causes import FAMILIES
from scipy import special

from rope_jax.statistics import intervals

Record = dict[str, Any]
Key = tuple[str, int, str]
GOALS = {
    "component named": (">=", 0.85),
    "recovers most": (">=", 0.90),
    "wrong": ("<=", 0.03),
    "false alarms": ("<=", 0.05),
}
SURE, MOST = 0.95, 0.5
REPAIR = "repair"
CONSTANTS = {
    "always scale by llama3": "scale by llama3 instead",
    "always drop the bias": "drop the bias",
    "always repair": REPAIR,
}
_OF_OPTION = {"1": "bias", "2": "scaling", "3": "scaling"}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Returns a short hash of settings that are plain JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def key_of(record: Record) -> Key:
    """Returns what distinguishes a case: the model's hash, the case's seed, and the settings' hash."""
    return record["model_sha"], record["seed"], record["settings"]


def read(file: Path) -> list[Record]:
    """Returns the finished cases of a file, each once, the last of its key; a line that was cut off is left out."""
    if not file.is_file():
        return []
    found: dict[Key, Record] = {}
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off when the run was killed: the case is run again
        found[key_of(record)] = record
    return list(found.values())


def append(file: Path, record: Record) -> None:
    """Adds a finished case as a line of its own, also after one that was cut off."""
    whole = not file.is_file() or file.read_bytes()[-1:] in (b"", b"\n")
    with open(file, "a") as opened:
        opened.write(("" if whole else "\n") + json.dumps(record) + "\n")


# What is true of a case.


def recoverable(record: Record) -> float:
    """Returns what removing the plant wins back, nats; of two plants, the one that wins back more."""
    return max(record["removed"].values())


def components(record: Record) -> set[str]:
    """Returns the components that are right to name."""
    enough = {part for part, gain in record["removed"].items() if gain >= MOST * recoverable(record)}
    return enough | ({"both"} if len(enough) > 1 else set())


def is_recoverable(record: Record) -> bool:
    """Returns whether removing the plant wins back more than the margin."""
    return recoverable(record) > _margin(record)


def is_null(record: Record) -> bool:
    """Returns whether neither that nor any change does."""
    return max(recoverable(record), *record["gains"].values()) <= _margin(record)


def _margin(record: Record) -> float:
    return record["given"]["margins"]["gain"]


# What is said of it.


def named(record: Record) -> tuple[str, str, bool, bool]:
    """Returns what a verdict names: the change, the component, whether surely, and whether it is an alarm."""
    first, sure = record["first"], record["probability_first"] >= SURE
    if first == REPAIR:
        sure = record["implementation"] == "repair first"
        return REPAIR, "implementation", sure, sure
    gain = record["gain"]
    alarm = gain is not None and gain["low"] is not None and gain["low"] > _margin(record)
    if record["outside"] and record["outside"][1] >= SURE and _of_temperature(record["outside"][0]):
        return record["outside"][0], "temperature", True, alarm
    part = record["cause"] if record["cause"] in ("bias", "scaling", "both") else _OF_OPTION.get(record["option"], "")
    return first, part, sure, alarm


def best_seen(record: Record) -> tuple[str, str, bool, bool]:
    """Returns what "the change with the largest mean on the first contexts" names, alike."""
    words = max(record["seen"], key=record["seen"].__getitem__)
    return words, component_of(words), True, record["seen"][words] > _margin(record)


def constant(words: str) -> Callable[[Record], tuple[str, str, bool, bool]]:
    """Returns what names the same change in every case."""
    return lambda record: (words, component_of(words), True, True)


def component_of(words: str) -> str:
    """Returns the part that a change is of, by its words.

    >>> component_of("scale by llama3 instead"), component_of("drop the bias"), component_of("undo both")
    ('scaling', 'bias', 'both')
    """
    if words == REPAIR:
        return "implementation"
    if _of_temperature(words):
        return "temperature"
    return next((part for part in ("bias", "both") if part in words), "scaling")


def _of_temperature(words: str) -> bool:
    return "temperature" in words or "sharpen" in words


SAID_BY: Mapping[str, Callable[[Record], tuple[str, str, bool, bool]]] = {
    "verdict": named,
    "largest mean": best_seen,
    **{name: constant(words) for name, words in CONSTANTS.items()},
}


def outcomes(record: Record, said_by: str) -> dict[str, bool]:
    """Returns what is measured of one case: empty where it is neither recoverable nor a null."""
    words, part, sure, alarm = SAID_BY[said_by](record)
    if is_null(record):
        return {"false alarms": alarm}
    if not is_recoverable(record):
        return {}
    most = record["gains"].get(words, 0.0) >= MOST * recoverable(record)
    return {"component named": part in components(record), "recovers most": most, "wrong": sure and not most}


# Tables.


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the exact interval of a share; 0 to 1 without trials.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404.

    >>> low, high = clopper_pearson(0, 10)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.3085)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    tail = (1 - confidence) / 2
    low = special.betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


def counted(records: Sequence[Record], said_by: str) -> dict[str, list[tuple[str, bool]]]:
    """Returns, of each measure, the model and the outcome of every case that has it."""
    found: dict[str, list[tuple[str, bool]]] = {name: [] for name in GOALS}
    for record in records:
        for name, outcome in outcomes(record, said_by).items():
            found[name].append((record["model_sha"], outcome))
    return found


def by_family(records: Sequence[Record]) -> str:
    """Returns how the verdict does in every family, and in all."""
    groups = {family: [one for one in records if one["family"] == family] for family in FAMILIES}
    lines = ["| family | cases | recoverable | nulls | " + " | ".join(GOALS) + " |", "|---" * (4 + len(GOALS)) + "|"]
    for family, found in {**groups, "all": list(records)}.items():
        if found:
            sizes = [len(found), sum(map(is_recoverable, found)), sum(map(is_null, found))]
            shares = [_share([outcome for _, outcome in of]) for of in counted(found, "verdict").values()]
            lines.append(f"| {' | '.join([family, *map(str, sizes), *shares])} |")
    return "\n".join(lines)


def beside(records: Sequence[Record]) -> str:
    """Returns the verdict beside constant answers, with intervals over cases and over models."""
    lines = ["| said by | intervals over | " + " | ".join(GOALS) + " |", "|---" * (2 + len(GOALS)) + "|"]
    for said_by in SAID_BY:
        found = counted(records, said_by)
        lines.append(f"| {said_by} | cases | " + " | ".join(_share([o for _, o in of]) for of in found.values()) + " |")
        if said_by == "verdict":
            lines.append(f"| {said_by} | models | " + " | ".join(map(_over_models, found.values())) + " |")
    return "\n".join(lines)


def _share(outcomes: Sequence[bool]) -> str:
    if not outcomes:
        return "-"
    low, high = clopper_pearson(sum(outcomes), len(outcomes))
    return f"{sum(outcomes)}: {sum(outcomes) / len(outcomes):.1%} [{low:.1%}, {high:.1%}]"


def _over_models(outcomes: Sequence[tuple[str, bool]]) -> str:
    """Returns the mean of the models' shares and its t interval: the models, not the cases, are what varies."""
    models = dict.fromkeys(model for model, _ in outcomes)
    if len(models) < 2:
        return "-"
    value = intervals.estimate(np.array([np.mean([o for m, o in outcomes if m == model]) for model in models]))
    low, high = (min(1.0, max(0.0, end or 0.0)) for end in (value.low, value.high))
    return f"{value.mean:.1%} [{low:.1%}, {high:.1%}]"


def report(records: Sequence[Record]) -> str:
    """Returns all that is said of finished cases, for each of their settings."""
    if not records:
        return "no finished cases"
    parts = []
    for settings in dict.fromkeys(record["settings"] for record in records):
        chosen = [record for record in records if record["settings"] == settings]
        parts.append("\n".join([f"settings {settings}: {json.dumps(chosen[0]['given'])}", *_of_one(chosen)]))
    return "\n\n".join(parts)


def _of_one(records: Sequence[Record]) -> list[str]:
    goals = []
    for name, of in counted(records, "verdict").items():
        sign, goal = GOALS[name]
        share = np.mean([outcome for _, outcome in of]) if of else None
        met = share is not None and (share >= goal if sign == ">=" else share <= goal)
        goals.append(f"{name} {sign} {goal:.0%}: {'-' if share is None else 'met' if met else 'missed'}")
    seconds = [sum(record["seconds"].values()) for record in records]
    neither = sum(not is_recoverable(record) and not is_null(record) for record in records)
    return [
        f"{len(records)} cases of {len({record['model_sha'] for record in records})} models; over cases "
        "Clopper-Pearson 95 % intervals, over models t intervals of their shares",
        *("", by_family(records), "", beside(records), "", "; ".join(goals)),
        f"in {neither} cases the plant costs no more than the margin, yet some change wins back more",
        f"{np.mean([record['contexts'] for record in records]):.0f} contexts at each length on average; "
        f"{sum(not record['settled'] for record in records)} verdicts were still open at the last analysis",
        f"{np.mean(seconds):.1f} s a case, {max(seconds):.0f} s at most",
        *_mistakes(records),
    ]


def _mistakes(records: Sequence[Record]) -> list[str]:
    lines = []
    for record in records:
        found = outcomes(record, "verdict")
        bad = [name for name in ("wrong", "false alarms") if found.get(name)]
        if bad:
            strengths = ", ".join(f"{name} {value:.3g}" for name, value in record["strengths"].items())
            removed = ", ".join(f"{part} {gain:+.2f}" for part, gain in record["removed"].items())
            words = named(record)[0]
            lines.append(
                f"  {record['model']}, seed {record['seed']}, {record['family']} ({record['kind']}; {strengths}): "
                f"{bad[0]}: {words} ({record['gains'].get(words, 0.0):+.2f} nats); the plant removed: {removed}"
            )
    return ["", "wrong verdicts and false alarms:", *lines] if lines else []
