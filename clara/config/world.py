"""Section `world` of the configuration: a generated world to learn in."""

from pydantic import Field

from clara.config.section import Section

POOL_SIZE = 20
"""Documents of a pool; with fewer facts pools cannot be filled."""


class World(Section):
    """A small world in which similarity misleads: how many questions and facts it has."""

    train: int = Field(2400, ge=POOL_SIZE, description="training questions, five documents each")
    held_out: int = Field(200, ge=POOL_SIZE, description="questions of each held-out split")
    pretrain: int = Field(5000, ge=POOL_SIZE, description="facts to pretrain on, three examples each")
    rivals: int = Field(
        0,
        ge=0,
        le=5,
        description="harder: other facts about the same person in each pool, which has 15 places beside the right "
        "document and its decoys",
    )
    paraphrase: bool = Field(
        True, description="examples in other words beside those with answers; without them: the ablation"
    )
