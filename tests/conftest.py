"""What all tests need: one torch thread each, since tests run side by side."""

import torch

torch.set_num_threads(1)
