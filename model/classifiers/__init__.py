"""Orientation adversaries: classifiers that see a picture and say whether it was transposed."""

from banding_removal.model.classifiers.adversary import (
    ARCHITECTURES,
    Architecture,
    Ensemble,
    build_adversary,
)

__all__ = ["ARCHITECTURES", "Architecture", "Ensemble", "build_adversary"]
