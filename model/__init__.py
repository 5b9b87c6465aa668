"""The networks: the predictor, and in `classifiers` the adversaries."""
