"""A blinded comparison by readers: pages to rate images on, and the statistics of their ratings."""
