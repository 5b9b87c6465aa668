"""Training k-space cascades, and training the banding out of them."""

import os

__version__ = "0.1.0"

# OpenMP's threads wait for each other after every operation. By default, they spin for so long that
# a step takes many times as long if another program takes the core of one of them. After this many
# turns they sleep. libgomp reads this once, when torch is loaded: so it is set here, which
# every script imports first. What the user has set is kept.
SPINS = "5000"

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = SPINS
