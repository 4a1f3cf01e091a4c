"""Weight averaging."""

from .registry import mean, method

average = method("average", source="Wortsman et al. 2022, uniform soup (arXiv 2203.05482)", others=None)(mean)
