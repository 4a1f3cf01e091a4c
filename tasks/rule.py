"""The rule of a promotion, as params.yaml states it. Imports nothing that takes time."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Rule(BaseModel):
    """Who may bear an alias, and what it takes to replace the bearer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    among: str = Field("tags.kind = 'merged'", description="which runs may win, in MLflow's search syntax")
    metric: str = Field("accuracy_normalized", description="the most of this wins")
    margin: float = Field(0.0, ge=0, description="by how much a challenger must be better than the bearer")
