"""Records what transformers computes for tiny models of every model type and rope type.

Run from the repository's root, where torch and transformers are installed:

    PYTHONPATH=. python tests/golden/record_transformers_logits.py

The weights come from a fixed numpy stream and are not stored.
"""

import json
import pathlib
import tempfile
from typing import Any

import numpy as np
from logit_cases import CASES, RUNS, TOKENS, write

GOLDEN = pathlib.Path(__file__).with_name("transformers_logits.npz")


def peer_logits(directory: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
    """Returns the logits of transformers for every run, float32 `[tokens, vocabulary]`, and its model; needs torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    logits = {}
    # From short to long: the dynamic rope type keeps the longest length of earlier forward passes.
    for run, (first, count, _) in RUNS.items():
        with torch.no_grad():
            tokens = torch.from_numpy(TOKENS[:, :count].astype(np.int64))
            positions = torch.arange(first, first + count)[None]
            logits[run] = model(tokens, position_ids=positions, use_cache=False).logits[0].numpy()
    return logits, model


def main() -> None:
    """Writes the golden file."""
    import torch
    import transformers

    recorded: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, config in CASES.items():
            directory = pathlib.Path(scratch) / name
            write(directory, config)
            logits, _ = peer_logits(directory)
            recorded[name] = np.concatenate([logits[run][list(kept)] for run, (_, _, kept) in RUNS.items()])
    source = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "command": "PYTHONPATH=. python tests/golden/record_transformers_logits.py",
        "settings": "eager attention, float32, CPU; rows: the kept tokens of each run, in the order of RUNS",
        "runs": {run: list(values) for run, values in RUNS.items()},
    }
    np.savez_compressed(GOLDEN, source=np.array(json.dumps(source)), **recorded)


if __name__ == "__main__":
    main()
