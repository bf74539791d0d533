"""Every test runs with shapes and dtypes of public signatures checked, and rank promotion forbidden."""

import pathlib

import hypothesis
import jax
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

install_import_hook("rope_jax", "strict_types.check")
jax.config.update("jax_numpy_rank_promotion", "raise")

# One profile whether or not CI is set, and no test that a busy machine fails: the same examples every time, however
# long they take. `--hypothesis-profile=explore` draws others.
_UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("suite", derandomize=True, database=None, **_UNTIMED)
hypothesis.settings.register_profile("explore", derandomize=False, **_UNTIMED)
hypothesis.settings.load_profile("suite")

REAL = pathlib.Path(__file__).resolve().parents[2] / "shared" / "real"


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Lets a module's compiled programs go: each maps memory, and a process may hold only so many mappings."""
    yield
    jax.clear_caches()


@pytest.fixture
def without_type_checks():
    """Calls as a user's process makes them: only the library's own checks stand before the code."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real() -> pathlib.Path:
    """The folder of real inputs beside the checkout; tests that need it skip where it is absent."""
    if not REAL.is_dir():
        pytest.skip(f"real inputs are not at {REAL}")
    return REAL
