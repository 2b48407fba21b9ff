"""How sure a share is."""

from __future__ import annotations

from math import sqrt

Z_95 = 1.959963984540054


def wilson(passed: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """The 95 % interval of a share, passed of count (Wilson 1927): it stays within 0 and 1 and is no point at 0 of n,
    unlike the normal one. (0, 1) for a count of 0.

    centre (p + z²/2n) / (1 + z²/n), half width z/(1 + z²/n) · sqrt(p(1 - p)/n + z²/4n²).
    """
    if not 0 <= passed <= count:
        raise ValueError(f"{passed} of {count}")
    if count == 0:
        return 0.0, 1.0
    share, spread = passed / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / count + spread / (4 * count))
    # at the ends exact, whatever rounding says
    return (centre - half if passed else 0.0), (centre + half if passed < count else 1.0)
