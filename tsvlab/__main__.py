"""``python -m tsvlab``: pre-train the base."""

import logging
import sys
from pathlib import Path

import torch

from .pretrain import pretrain

if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    pretrain(Path(sys.argv[1]), **{key: int(value) for key, value in (arg.split("=") for arg in sys.argv[2:])})
