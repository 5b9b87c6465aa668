"""Training k-space cascades, and training the banding out of them."""
