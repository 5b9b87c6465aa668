"""Training k-space cascades, and training the banding out of them."""

__version__ = "0.1.0"
