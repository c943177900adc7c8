"""Market features: one definition each, computed for a whole series or bar by bar, equal to 1e-12.

`columns` turns bars into scale-free base columns, `ladder` builds window statistics from halves, `view` is
what a formula sees of them, `groups` holds the formulas, `spec` an ordered choice of them with its memory and
hash. `frame` and `incremental` are the two runners.
"""

from strategies.features.frame import compute_frame, features_and_volatility, fill_frame, volatility_frame
from strategies.features.incremental import IncrementalFeatures
from strategies.features.spec import (
    VOLATILITY_WINDOW,
    FeatureError,
    FeatureSpec,
    Group,
    default_spec,
    tutorial_spec,
)

__all__ = [
    "VOLATILITY_WINDOW",
    "FeatureError",
    "FeatureSpec",
    "Group",
    "IncrementalFeatures",
    "compute_frame",
    "default_spec",
    "features_and_volatility",
    "fill_frame",
    "tutorial_spec",
    "volatility_frame",
]
