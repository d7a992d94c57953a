"""Settings of every test run."""

import torch

# The tensors of the tests are tiny: a second thread only costs, and much so on a busy machine.
torch.set_num_threads(1)
