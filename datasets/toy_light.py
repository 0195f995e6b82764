"""Magnitudes of toy star particles: one fit for all ages and metallicities of single stellar populations.

    M + 2.5 log10 m = c0 + c1 t + c2 z + c3 t z + c4 z²,     t = log10(age / Gyr), z = log10(Z / 0.02),

with m the initial mass in Msun. The coefficients were fitted to the magnitudes of the 266 star particles of the public
TNG50-4 subbox 0 at z = 0, which are Bruzual & Charlot (2003) populations with Chabrier's mass function: rms 0.05 mag
(K 0.08) over ages of 0.26 to 13 Gyr and Z of 1e-4 to 0.017. Younger stars extrapolate the power law of age to 5 Myr
and keep that value before; without dust, nebulae or the bumps of red supergiants.

References:
    Bruzual & Charlot 2003, MNRAS 344, 1000 (astro-ph/0309134).
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609): GFM_StellarPhotometrics.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

YOUNGEST = 5e-3  # Gyr
METALLICITIES = (1e-4, 0.05)

# Bands U B V K (Vega) and g r i z (AB); columns 1, t, z, t z, z²
_FIT = np.array(
    [
        [5.605, 2.900, 1.218, 0.363, 0.360],
        [5.350, 2.594, 0.934, 0.205, 0.273],
        [4.711, 2.227, 0.697, 0.132, 0.222],
        [2.154, 1.529, -0.228, -0.075, -0.018],
        [4.975, 2.458, 0.843, 0.174, 0.253],
        [4.463, 2.088, 0.618, 0.108, 0.205],
        [4.240, 1.887, 0.502, 0.061, 0.173],
        [4.055, 1.754, 0.330, 0.017, 0.119],
    ]
)


def magnitudes(age: Array, metallicity: Array, initial_mass: Array) -> Array:
    """Absolute magnitudes of star particles.

    Args:
        age: (n,) Gyr; wind particles, whose age is negative, get magnitude 0, next to no light.
        metallicity: (n,) metal mass fraction.
        initial_mass: (n,) Msun.

    Returns:
        (n, 8) in U, B, V, K (Vega), g, r, i, z (AB).
    """
    t = np.log10(np.maximum(age, YOUNGEST))
    z = np.log10(np.clip(metallicity, *METALLICITIES) / 0.02)
    terms = np.stack([np.ones_like(t), t, z, t * z, z * z], axis=1)
    light = terms @ _FIT.T - 2.5 * np.log10(initial_mass)[:, None]
    return np.where(np.asarray(age)[:, None] < 0, 0.0, light)
