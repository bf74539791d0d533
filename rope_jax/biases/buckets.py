"""Where T5's buckets begin, in whole numbers on the host."""

import functools

from rope_jax.errors import ScalingError


@functools.cache
def bucket_starts(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    r"""Returns the smallest offset in each of `num_buckets` one-sided buckets.

    The first half hold one offset each; bucket `e + k` of the rest starts at the first integer not below

    .. math:: e\,(D/e)^{k/(n-e)}, \quad e = \lfloor n/2 \rfloor

    found in integers, so an edge that falls on a whole number lands where real arithmetic puts it; code that takes
    float32 logarithms may put such an edge one offset later.

    Args:
      num_buckets: `n`, at least 2.
      max_distance: `D`, above `n // 2`.

    Source: Raffel et al., arXiv 1910.10683, section 2.1, and its published code.

    >>> bucket_starts(32, 128)[-1], bucket_starts(32, 32768)[-1]
    (113, 20347)
    """
    exact = num_buckets // 2
    if num_buckets < 2:
        raise ScalingError(f"num_buckets must be at least 2 on each side, got {num_buckets}")
    if max_distance <= exact:
        raise ScalingError(f"max_distance must be above {exact} for {num_buckets} buckets, got {max_distance}")
    logarithmic = num_buckets - exact
    starts = list(range(exact))
    for k in range(logarithmic):
        # The smallest x with x^m >= e^(m-k) D^k.
        threshold = exact ** (logarithmic - k) * max_distance**k
        guess = int(exact * (max_distance / exact) ** (k / logarithmic))
        while guess**logarithmic >= threshold:
            guess -= 1
        while guess**logarithmic < threshold:
            guess += 1
        starts.append(guess)
    return tuple(starts)


def textbook_buckets(n_b: int) -> int:
    """Returns the `num_buckets` of the published code that gives the textbook's `n_b + 1` buckets."""
    if n_b < 1:
        raise ScalingError(f"n_b must be at least 1, got {n_b}")
    return n_b + 1
