"""Learning a schedule: the router of Learning-to-Cache (arXiv 2406.01733, section 3.3), for a frozen model.

The model is the same family file that the compiler uses, run by PyTorch with every sublayer's value mixed from the new
one and the cached one; only the mixing weights are trained.
"""

from __future__ import annotations
