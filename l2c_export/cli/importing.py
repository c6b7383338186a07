"""The options that say what files of other tools leave open, where a command takes a schedule."""

from __future__ import annotations

from .options import Choice, option

KINDS = ("l2c", "harmonica")
OPTIONS = (
    option("--router-kind", type=Choice(KINDS), default=KINDS[0], help="Which training a router (.pt) is from."),
    option("--budget", type=int, help="Of lists of computed steps, the one with so many (LeMiCa)."),
    option("--full-calls", metavar="RULE", help="The calls that are computed, where a predictor does not say them (L2P)."),
)
