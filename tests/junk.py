"""Values that a saved state, an option or a loss may hold by mistake."""

import math
import sys
from importlib.util import find_spec

JUNK = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**400, -(10**400), 10**5000),
    *(0.0, -0.0, 1.5, 1e30, 1e308, sys.float_info.max, 5e-324, math.nan, math.inf, -math.inf),
    *("", "1", "first", [], [0], [1, 1], [1.0], [[0, 1]], [{}], {}, {"epoch": 1}, 1j, object()),
]

if find_spec("torch") is not None:
    import numpy
    import torch

    JUNK += [torch.tensor(1.0), torch.ones(3), numpy.float64(1.0), numpy.int64(1), numpy.ones(2)]
