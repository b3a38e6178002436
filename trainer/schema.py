"""What all settings have in common; knows none of them."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, so that a misspelt name is an error and not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
