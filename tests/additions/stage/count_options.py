"""A stage that counts the tensors of what was made: what it can be told."""

from typing import Literal

from pydantic import Field

from backend.stage import Stage


class CountOptions(Stage):
    """What is counted."""

    stage: Literal["count"] = "count"
    at_least: int = Field(1, ge=0, description="Tensors that a result must have.")
