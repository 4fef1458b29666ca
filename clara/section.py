"""The node of the configuration tree that every section is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen node of the tree that knows all of its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
