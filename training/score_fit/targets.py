"""What the fused score is fitted to: the rows that make a question's answer more likely, by how much they do.

The utility of a row is the answer's log-likelihood with that row alone minus that with nothing.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from clara.arrays import Ids
from clara.data.utilities import Scored
from clara.errors import InputError
from clara.model.losses import log_mass


def target_mass(scored: Scored, row_ids: Ids, temperature: float) -> NDArray[np.float64] | None:
    """Target distribution over all rows of a MEMORY `[N]`; None if no row that was read helps.

    The mass of a row that was read is exp(utility/τ_u) − 1, clipped at 0, normalised. Other rows have none. A step of
    training has the same target (`clara.model.losses.utility_divergence`).

    Args:
        scored: utilities of one question.
        row_ids: of all rows, ascending; rows that were read are among them.
        temperature: τ_u, nats.

    Raises:
        InputError: a likelihood is not finite.
    """
    utilities = np.array(scored.log_likelihoods, np.float64) - scored.without
    if not np.isfinite(utilities).all():
        raise InputError(
            f"utilities of question {scored.question_id!r}: a likelihood is not finite; score the questions again with "
            "a model whose loss is finite"
        )
    logs = log_mass(torch.from_numpy(utilities), temperature).numpy()
    if np.isneginf(logs).all():
        return None
    mass = np.zeros(len(row_ids))
    mass[np.searchsorted(row_ids, np.array(scored.row_ids))] = np.exp(logs - logs.max())
    return mass / mass.sum()
