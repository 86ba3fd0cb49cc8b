"""Distributions, and how they are told."""

import time
from dataclasses import dataclass, field


def timed(action, *arguments):
    """The seconds that a call took, and what it gave."""
    began = time.perf_counter()
    result = action(*arguments)
    return time.perf_counter() - began, result


class Distribution:
    """What repeated measurements of one thing gave."""

    def __init__(self, values=()):
        self.values = list(values)

    def add(self, value):
        self.values.append(value)

    def at(self, share):
        """The smallest value that at least this share of all does not exceed."""
        ordered = sorted(self.values)
        place = -(-len(ordered) * share // 1)  # rounded up
        return ordered[min(len(ordered), max(1, int(place))) - 1]

    @property
    def p50(self):
        return self.at(0.5)

    @property
    def count(self):
        return len(self.values)

    def told(self, scale=1000, unit="ms"):
        """p50, p95, max and how many, in one unit."""
        figures = "  ".join(f"{name} {number(scale * value)}" for name, value in (("p50", self.p50), ("p95", self.at(0.95)), ("max", self.at(1))))
        return f"{figures} {unit}  n={self.count}"


def number(value):
    """Three significant digits, without an exponent."""
    for limit, digits in ((10, 2), (100, 1)):
        if abs(value) < limit:
            return f"{value:.3f}" if abs(value) < 1 else f"{value:.{digits}f}"
    return f"{value:.0f}"


@dataclass
class Row:
    """One line of the table: what was to be reached, what was, and the measurements behind it."""

    what: str
    wanted: str
    reached: str
    met: bool
    details: list = field(default_factory=list)
    method: str = ""

    def told(self):
        return "\n".join([f"{'met   ' if self.met else 'MISSED'}  {self.what}: {self.reached} (wanted: {self.wanted})", *("        " + line for line in self.details)])
