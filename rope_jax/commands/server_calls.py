"""The call of a server that makes it read from the old config what an exported one says."""

import json
import os
import pathlib
import shlex

from rope_jax.checkpoints.exporting import Exported, Wanted
from rope_jax.checkpoints.rope_types import ORIGINAL

_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


def vllm_call(source: pathlib.Path | None, wanted: Wanted, exported: Exported) -> str:
    """Returns the call of vLLM, which takes the place of keys in the old config."""
    model = "MODEL" if source is None or source.name != "config.json" else os.fspath(source.parent)
    overrides = json.dumps(exported.overrides, allow_nan=False)
    return shlex.join(
        ["vllm", "serve", model, "--hf-overrides", overrides, "--max-model-len", str(wanted.target_length)]
    )


def llama_cpp_call(wanted: Wanted, exported: Exported) -> str | None:
    """Returns the call of llama.cpp for a GGUF file of the old config; None where no flags say it.

    Llama 3's rule is a tensor of the file, which flags neither bring nor take away. Source: llama-context.cpp and
    common/arg.cpp.
    """
    section, declared = exported.section, wanted.group.rule.name
    kind = section["rope_type"]
    if kind not in ("default", "linear", "yarn") or declared == "llama3":
        return None
    call = ["llama-server", "-m", "MODEL.gguf", "-c", str(wanted.target_length)]
    call += [
        "--rope-scaling",
        "none" if kind == "default" else kind,
        "--rope-freq-base",
        _number(section["rope_theta"]),
    ]
    if kind != "default":
        call += ["--rope-scale", _number(section["factor"])]
    if kind == "yarn":
        call += ["--yarn-orig-ctx", str(section[ORIGINAL])]
        for key, usual in _BETAS.items():
            call += [f"--yarn-{key.replace('_', '-')}", _number(section.get(key, usual))]
    elif declared == "yarn":  # the file's attention factor would stay
        call += ["--yarn-attn-factor", "1"]
    return shlex.join(call)


def _number(value: float) -> str:
    """Returns as many digits as float32 has."""
    return f"{value:.9g}"
