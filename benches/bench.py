"""The platform beside its peers: prints each row of the table as it is measured, and writes docs/benchmarks.md."""

import argparse
import importlib.metadata
import time
from pathlib import Path

import host
import report
from build import build
from command_line import command_line
from disks import checkpoints, from_one_snapshot, snapshots
from egress import egress
from execution import live
from memory import idle
from peers import KernelGateway, Runc
from platform_under_test import Instance
from terminals import pty
from sessions import crowd, starts
from shares import shares
from transfer import gigabyte

REPOSITORY = Path(__file__).resolve().parent.parent


def versions(runc, binary):
    packages = {name: importlib.metadata.version(name) for name in ("instavm", "jupyter_kernel_gateway", "ipykernel")}
    return {
        "instavmd": host.first_line(binary, "--version"),
        "runc": runc.version(),
        "Jupyter Kernel Gateway": f"{packages['jupyter_kernel_gateway']} with ipykernel {packages['ipykernel']}",
        "official client": packages["instavm"],
        "skopeo, umoci": f"{host.first_line('skopeo', '--version')}, {host.first_line('umoci', '--version')}",
        "curl": host.first_line("curl", "--version").split(" (")[0],
    }


class Bench:
    """Runs the parts that were asked for, each after a calibration."""

    def __init__(self, only):
        self.only = only
        self.rows, self.calibrations = [], []

    def measure(self, name, action, *arguments):
        if self.only and name not in self.only:
            return
        calibration = host.calibration(), host.load()
        print(f"/bin/true {calibration[0].told()}  {calibration[1]}", flush=True)
        rows = action(*arguments)
        for row in rows if isinstance(rows, list) else [rows]:
            self.rows.append(row)
            self.calibrations.append(calibration)
            print(row.told(), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="starts, live, crowd, idle, transfer, command-line, snapshots, many, checkpoints, build, pty, egress, shares; all by default, and only then is the report written")
    arguments = parser.parse_args()
    began = time.monotonic()
    opened = []

    def opening(made):
        opened.append(made)
        return made

    try:
        pool = opening(Instance("pool"))
        cold = opening(Instance("cold", pool_size=0))
        runc = opening(Runc(pool.image()))
        runc.run()
        gateway = opening(KernelGateway())
        facts, used = host.facts(), versions(runc, pool.daemon.process.args[0])
        for name, value in {**facts, **used}.items():
            print(f"{name}: {value}")
        bench = Bench(arguments.only)
        bench.measure("starts", starts, pool, cold, runc)
        bench.measure("live", live, pool, gateway)
        bench.measure("crowd", crowd, pool, runc)
        bench.measure("idle", idle, cold)
        bench.measure("transfer", gigabyte, pool)
        bench.measure("snapshots", snapshots, cold)
        bench.measure("many", from_one_snapshot, cold)
        bench.measure("checkpoints", checkpoints, cold)
        bench.measure("build", build, pool)
        bench.measure("pty", pty, pool)
        bench.measure("egress", egress)
        bench.measure("shares", shares, pool)
        ours = REPOSITORY / "target/release/instavm"
        bench.measure("command-line", command_line, ours if ours.exists() else None, pool.daemon.base_url, pool.daemon.key)
    finally:
        for made in reversed(opened):
            made.close()
    seconds = time.monotonic() - began
    print(f"{sum(row.met for row in bench.rows)} of {len(bench.rows)} met, in {seconds:.0f} s")
    if not arguments.only:
        report.write(report.page(facts, used, bench.rows, bench.calibrations, seconds))
        print(f"written: {report.PAGE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
