"""A tokenizer run in a process of its own: a damaged `tokenizer.json` can abort whoever reads it.

Run as a file, not imported: `tokenizer_process.py TOKENIZER BYTES` reads a JSON list of documents from its input and
writes `LOADED` once the tokenizer is read, then the token ids of all documents as int64. Where it fails, the last line
of its error output says why. It imports nothing of this package, so that it starts in a fraction of a second.
"""

import contextlib
import json
import sys

LOADED = b"loaded\n"


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # where a system has no such limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))


def main() -> int:
    """Returns the exit status: 0, or 1 where reading the tokenizer or encoding raised."""
    file, memory = sys.argv[1:]
    _limit_memory(int(memory))
    documents = json.loads(sys.stdin.buffer.read())
    try:
        import numpy as np
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(file)
        sys.stdout.buffer.write(LOADED)
        sys.stdout.buffer.flush()
        # What a tokenizer was saved with would cut every document, or fill all up to the longest one.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for encoded in tokenizer.encode_batch(documents):
            sys.stdout.buffer.write(np.asarray(encoded.ids, "<i8").tobytes())
        sys.stdout.buffer.flush()
    except BaseException as error:  # a panic of the library is no Exception
        lines = str(error).splitlines() or [type(error).__name__]
        sys.stderr.write(f"\n{lines[0][:300]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
