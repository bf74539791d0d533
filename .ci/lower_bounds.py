"""Prints pip constraints that pin every dependency of pyproject.toml, `test` extra included, to its lower bound."""

import pathlib
import re
import tomllib

PROJECT = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"


def lower_bounds(project: dict) -> list[str]:
    """Returns one constraint a dependency, `name==version`; an extra of the project's own stands for what is in it.

    Args:
      project: the `project` table of a pyproject.toml.

    Raises:
      ValueError: if a dependency has no lower bound.
    """
    extras = project["optional-dependencies"]
    wanted = []
    for requirement in [*project["dependencies"], *extras["test"]]:
        own = re.fullmatch(r"rope_jax\[([\w-]+)\]", requirement)
        wanted += [requirement] if own is None else extras[own[1]]
    pins = []
    for requirement in wanted:
        match = re.fullmatch(r"([\w.-]+)\s*[>=]=\s*([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{PROJECT.name}: {requirement!r} has no lower bound of the form NAME>=VERSION")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lower_bounds(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"])))
