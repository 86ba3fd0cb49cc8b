"""The table as text and as a page."""

import os
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs/benchmarks.md"


def busy(calibrations):
    """What is to be said about other programs, if anything."""
    loads = [float(load.split()[1]) for _, load in calibrations]
    if max(loads) <= os.cpu_count():
        return []
    return [f"Other programs took the processors meanwhile: the load was up to {max(loads):.1f} on {os.cpu_count()} processors. Both sides of each ratio had to wait.", ""]


def page(facts, versions, rows, calibrations, seconds):
    """The report of one run."""
    lines = [
        "# Benchmarks",
        "",
        "`make bench` measures the platform and its peers in one run on the same machine, by turns, and writes this page. Nothing here is a test's",
        "assertion: figures depend on the machine and on what else it does. The calibration, starting and reaping `/bin/true`, tells a busy minute",
        "from a quiet one.",
        "",
        *(f"- {name}: {value}" for name, value in {**facts, **versions}.items()),
        f"- command: `make bench`, {seconds:.0f} s",
        "",
        *busy(calibrations),
        "| what | wanted | reached | |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.wanted} | {row.reached} | {'met' if row.met else '**missed**'} |" for row in rows),
        "",
    ]
    for row, (before, load) in zip(rows, calibrations, strict=True):
        lines += [f"## {row.what[0].upper()}{row.what[1:]}", "", row.method, "", "```", *row.details, f"{'/bin/true before':<17}{before.told()}  {load}", "```", ""]
    return "\n".join(lines)


def write(text):
    PAGE.write_text(text)
