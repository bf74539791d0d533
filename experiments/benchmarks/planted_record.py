"""Finished cases on disk, one JSON line each, and the table of how often the verdict was right."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from planted_causes import ALLOWED, FAMILIES
from planted_truth import UNDETERMINED, is_named, outcome
from scipy import special

Record = dict[str, Any]
Key = tuple[str, int, str]
GOALS = {"right": (">=", 0.90), "wrong": ("<=", 0.03), "false alarms": ("<=", 0.05)}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Returns a short hash of settings that are plain JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def key_of(record: Record) -> Key:
    """Returns what tells a case from others: the model's hash, the case's seed, and the settings' hash."""
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


def counts(records: Iterable[Record], said_by: str) -> dict[str, tuple[int, int]]:
    """Returns, of each measure, how many cases have it and out of how many.

    Cases in which something truly wins back the margin are right, wrong or undetermined; where nothing does, what
    names something to change is a false alarm, and what is right is counted apart.

    Args:
      records: finished cases.
      said_by: "verdict" or "baseline".
    """
    planted = {"right": 0, "wrong": 0, UNDETERMINED: 0}
    nulls = {"false alarms": 0, "nulls right": 0}
    totals = [0, 0]
    for record in records:
        said = record[said_by]
        result = outcome(said, record["right"], ALLOWED[record["family"]])
        totals[record["null"]] += 1
        if record["null"]:
            nulls["false alarms"] += is_named(said)
            nulls["nulls right"] += result == "right"
        else:
            planted[result] += 1
    return {
        **{name: (count, totals[0]) for name, count in planted.items()},
        **{name: (count, totals[1]) for name, count in nulls.items()},
    }


def table(records: Sequence[Record]) -> str:
    """Returns the table by family and in total, of the verdict and of the baseline beside it."""
    by_family = {family: [r for r in records if r["family"] == family] for family in FAMILIES}
    groups = {**{family: found for family, found in by_family.items() if found}, "all": list(records)}
    measures = ("right", "wrong", UNDETERMINED, "false alarms", "nulls right")
    lines = [
        "| family | said by | planted | nulls | " + " | ".join(measures) + " |",
        "|---" * (4 + len(measures)) + "|",
    ]
    for family, found in groups.items():
        for said_by, name in (("verdict", "verdict"), ("baseline", "best arm")):
            found_counts = counts(found, said_by)
            totals = [str(found_counts[measure][1]) for measure in ("right", "false alarms")]
            cells = [_share(*found_counts[measure]) for measure in measures]
            lines.append(f"| {' | '.join([family, name, *totals, *cells])} |")
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = clopper_pearson(count, total)
    return f"{count}: {count / total:.1%} [{low:.1%}, {high:.1%}]"


def report(records: Sequence[Record]) -> str:
    """Returns all that is said of finished cases: for each of their settings the table, the goals, and the edges."""
    if not records:
        return "no finished cases"
    parts = []
    for settings in dict.fromkeys(record["settings"] for record in records):
        chosen = [record for record in records if record["settings"] == settings]
        parts.append("\n".join([f"settings {settings}: {json.dumps(chosen[0]['given'])}", *_of_one(chosen)]))
    return "\n\n".join(parts)


def _of_one(records: Sequence[Record]) -> list[str]:
    total = counts(records, "verdict")
    goals = []
    for name, (sign, goal) in GOALS.items():
        count, trials = total[name]
        met = trials and (count / trials >= goal if sign == ">=" else count / trials <= goal)
        goals.append(f"{name} {sign} {goal:.0%}: {'-' if not trials else 'met' if met else 'missed'}")
    edges = [record for record in records if record["edge"]]
    at_edge = counts(edges, "verdict")
    gates = sum(set(record["used"]) != set(record["learned"]) for record in records)
    seconds = [sum(record["seconds"].values()) for record in records]
    took = Counter(record["haystacks"] for record in records)
    return [
        f"{len(records)} cases of {len({record['model_sha'] for record in records})} models; shares with "
        "Clopper-Pearson 95 % intervals",
        "",
        table(records),
        "",
        "; ".join(goals),
        f"{len(edges)} cases hang on a number within 20 % of its margin and count like all others; of them "
        + ", ".join(f"{at_edge[name][0]} {name}" for name in ("right", "wrong", UNDETERMINED, "false alarms")),
        f"in {gates} cases other probes passed the gate on the tool's haystacks than on the truth's",
        "haystacks at each length that the tool took: "
        + ", ".join(f"{haystacks} in {took[haystacks]} cases" for haystacks in sorted(took))
        + f"; {sum(not record['settled'] for record in records)} verdicts were still open at the last look",
        f"{sum(seconds) / len(seconds):.1f} s a case, {max(seconds):.0f} s at most",
        *_mistakes(records),
    ]


def _mistakes(records: Sequence[Record]) -> list[str]:
    lines = []
    for record in records:
        said = record["verdict"]
        wrong = outcome(said, record["right"], ALLOWED[record["family"]]) == "wrong"
        if wrong and (not record["null"] or is_named(said)):
            strengths = ", ".join(f"{name} {value:.3g}" for name, value in record["strengths"].items())
            lines.append(
                f"  seed {record['seed']}, {record['family']} ({record['kind']}; {strengths}): said {said}, right is "
                f"{' or '.join(record['right'])}{'; at the edge' if record['edge'] else ''}"
            )
    return ["", "wrong verdicts and false alarms:", *lines] if lines else []
