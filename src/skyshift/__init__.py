"""skyshift: translate maps of simulated galaxies into what a telescope would see, and back.

``skyshift.datasets`` turns simulation snapshots into a store of maps, ``skyshift.translate`` learns to turn
one kind of map into another, ``skyshift.adapt`` trains classifiers on the translated maps that keep working
on real observations.
"""

import os

# OpenMP's busy waiting makes two threads up to ten times slower than one as soon as anything else runs on the
# same cores (a loader worker, a second process). The variable is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
