"""Puts what the tests of all rooms share, `cases.py`, within their reach, and compiles one program once a session.

Every diagnosis makes its own program objects; of one model's shapes they are the same programs.
"""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def _compiled_once(tmp_path_factory):
    if jax.config.jax_compilation_cache_dir is not None:  # a developer's own, from one run to the next
        yield
        return
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
