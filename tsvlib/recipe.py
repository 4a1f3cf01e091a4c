"""How a fine-tune is made. Apart from the making, which takes seconds to import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Hyper-parameters of a fine-tuning run (AdamW, linear warm-up, cosine to zero, gradient norm clipped at 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(200, gt=0)
    batch: int = Field(64, gt=0)
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    seed: int = 0
    distillation: float = Field(0.0, ge=0)
    """Weight, beside the cross-entropy, of 1 - cosine between the encoder's and the base's features of other images."""
    distillation_batch: int = Field(32, gt=0)
    """Other images a step."""
    interpolation: float = Field(1.0, gt=0, le=1)
    """Least share of the way from the base at which a step's gradient is taken; 1: always at the weights themselves."""
