r"""The coordinator's own optimiser (FedOpt, Reddi et al., ICLR 2021; FedAvgM, Hsu et al. 2019).

The one change $\Delta_t$ of a round is taken as a gradient. With $\eta$ `server_learning_rate`,
$\beta_1$ `server_momentum`, $\beta_2$ `server_beta2` and $\tau$ `server_tau`:

- momentum: $m_t = \beta_1 m_{t-1} + \Delta_t$, and $W' = W + \eta\, m_t$.
- adam: $m_t = \beta_1 m_{t-1} + (1-\beta_1) \Delta_t$,
  $v_t = \beta_2 v_{t-1} + (1-\beta_2) \Delta_t^2$, and $W' = W + \eta\, m_t / (\sqrt{v_t} + \tau)$.
- yogi: as adam, with $v_t = v_{t-1} - (1-\beta_2)\, \Delta_t^2\, \mathrm{sign}(v_{t-1} - \Delta_t^2)$.

$m_{-1} = 0$ and $v_{-1} = \tau^2$; there is no correction for bias, as in the paper. All of it
works on what has left the sites: it costs no privacy. A site that looks at what it would have had
alone takes the same steps.
"""

import numpy as np
import numpy.typing as npt

from fedpact.common.adapter import Weights
from fedpact.common.study_together import Aggregation


def step(how: Aggregation, change: Weights, state: Weights | None) -> tuple[Weights, Weights]:
    """One step of the study's server optimiser.

    Returns:
        the change of the adapter, and the state after it: tensors `m:NAME`, and `v:NAME`
        with adam and yogi, float32.
    """
    remembered = dict(state.tensors()) if state else {}
    stepped = {}
    for name, delta in change.tensors().items():
        gradient = delta.astype(np.float64)
        m = remembered.get(f"m:{name}", np.zeros_like(delta)).astype(np.float64)
        if how.server_optimizer == "momentum":
            m = how.server_momentum * m + gradient
            direction = m
        else:
            m = how.server_momentum * m + (1 - how.server_momentum) * gradient
            before = remembered.get(f"v:{name}", np.full_like(delta, how.server_tau**2))
            v = _second_moment(how, before.astype(np.float64), gradient**2)
            remembered[f"v:{name}"] = v.astype(np.float32)
            direction = m / (np.sqrt(v) + how.server_tau)
        remembered[f"m:{name}"] = m.astype(np.float32)
        stepped[name] = how.server_learning_rate * direction
    kept = {name: remembered[name] for name in sorted(remembered)}
    return Weights.from_tensors(stepped), Weights.from_tensors(kept)


def _second_moment(
    how: Aggregation, v: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    beta = how.server_beta2
    if how.server_optimizer == "adam":
        return beta * v + (1 - beta) * squared
    return v - (1 - beta) * squared * np.sign(v - squared)
