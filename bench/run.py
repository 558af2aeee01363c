#!/usr/bin/python3
"""Lodge's soft engine beside the bare host and QEMU's TCG: the same kernel, initial RAM disk and machine shape.

Each round starts native, Lodge, TCG (-cpu max), TCG (-cpu Nehalem) one after the other. Medians over rounds; the
faster TCG counts, workload by workload. `make bench` runs everything and writes docs/performance.md.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import peers
import report
from peers import IMAGE, WORK, Machine, measure

JOBS = ["gcc", "gzip", "zstd", "unzstd", "python-start", "python-loop", "shell", "find", "sqlite", "openssl-sha256",
        "openssl-aes", "openssl-rsa"]
QUICK_JOBS = ["gcc", "zstd", "python-loop", "shell", "find", "openssl-rsa"]
BOOTS = ["kernel-to-init-1cpu", "kernel-to-init-2cpu", "debian-to-login-1cpu", "debian-to-login-2cpu"]


class Bench:
    def __init__(self, options):
        self.options = options
        self.results = {}  # workload -> (class, {peer: [value of each round]})
        self.drifts = []   # (peer, what, guest's time over host's less one)
        self.workloads = {}
        self.has_image = True
        self.tcg = [] if options.no_tcg else ["tcg-max"] if options.quick else list(peers.TCG)
        self.all = ["native", "lodge", *self.tcg]

    def wants(self, class_, name=None):
        return not self.options.only or class_ in self.options.only or name in self.options.only

    def add(self, class_, name, peer, value):
        self.results.setdefault(name, (class_, {}))[1].setdefault(peer, []).append(value)

    def keep(self, peer, what, run, class_of):
        for name, value in run.values.items():
            self.add(class_of(name), name, peer, value)
        if peer != "native" and run.clock_drift is not None:
            self.drifts.append((peer, what, run.clock_drift))

    def say(self, what, peer):
        print(f"{time.strftime('%H:%M:%S')} {what}: {peer}", file=sys.stderr, flush=True)

    # --- the parts of a round ---

    def small(self):
        names = [n for n, (class_, cpus) in self.workloads.items() if cpus == 1 and self.wants(class_, n)]
        for peer in self.all if names else ():
            self.say("workloads", peer)
            run = measure(peer, names, self.options.ms, Machine())
            self.keep(peer, "workloads", run, lambda name: self.workloads[name][0])

    def smp(self):
        if not self.wants(report.TIMES):
            return
        for peer in self.all:
            self.say("two CPUs", peer)
            values = measure(peer, ["one-cpu", "two-cpus"], 2 * self.options.ms, Machine(cpus=2)).values
            one, two = values["one-cpu"], values["two-cpus"]
            good = isinstance(one, float) and isinstance(two, float)
            self.add(report.TIMES, "two-cpus", peer, 2 * one / two if good else two if isinstance(two, str) else one)

    def whole(self):
        names = [name for name in (QUICK_JOBS if self.options.quick else JOBS) if self.wants("whole", name)]
        machine = Machine("root=/dev/vda ro init=/usr/local/sbin/lodge-bench", IMAGE / "vmlinuz", IMAGE / "initrd", memory=1024,
                          disks=[(IMAGE / "disk.raw", True), (WORK / "payload.raw", True)])
        for peer in self.all if names else ():
            self.say("whole programs", peer)
            run = peers.Run(dict.fromkeys(names, "failed: no image"))
            if self.has_image:
                run = measure(peer, names, self.options.ms, machine, jobs=True)
            self.keep(peer, "whole programs", run, lambda name: "whole")

    def boots(self):
        for name in BOOTS:
            cpus = 2 if "2cpu" in name else 1
            if not self.wants("boot", name) or (self.options.quick and name != BOOTS[0]):
                continue
            for peer in self.all[1:]:
                self.say(name, peer)
                boot = self.boot_to_login if "debian" in name else self.boot_to_init
                self.add("boot", name, peer, boot(peer, cpus) or "failed: did not start")

    @staticmethod
    def boot_to_init(peer, cpus):
        run = peers.one_start(peer, [], 0, Machine(memory=256, cpus=cpus), False, None)
        return run.to_init if run.ended else None

    def boot_to_login(self, peer, cpus):
        if not self.has_image:
            return "failed: no image"
        with tempfile.TemporaryDirectory(dir=WORK) as folder:
            disk = pathlib.Path(folder) / "disk.raw"
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", IMAGE / "disk.raw", disk], check=True)
            machine = Machine("root=LABEL=root ro", IMAGE / "vmlinuz", IMAGE / "initrd", cpus, 1024, [(disk, False)])
            for seconds, line in peers.lines_of(machine.command(peer), until=b"login: "):
                if "login:" in line:
                    return seconds
        return None

    def footprint(self):
        if not self.wants(report.MIB):
            return
        names = [name for name, (_, cpus) in self.workloads.items() if cpus == 1]
        for peer in self.all[1:]:
            self.say("memory", peer)
            foot = peers.FootPrint()
            run = measure(peer, names, 20, Machine(memory=256), started=foot.follow)
            self.add(report.MIB, "host-memory", peer, foot.peak_kib / 1024 if run.to_init else "failed: did not start")

    def run(self):
        peers.prepare()
        listing = subprocess.run([WORK / "bench", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
        self.workloads = {name: (class_, int(cpus)) for name, class_, cpus in map(str.split, listing.splitlines())}
        if any(self.wants("whole", name) for name in JOBS) or any(self.wants("boot", name) for name in BOOTS[2:]):
            try:
                peers.prepare_image()
            except (OSError, subprocess.CalledProcessError, StopIteration) as error:
                self.has_image = False
                print(f"no Debian image, so no whole programs: {error}", file=sys.stderr)
        for number in range(self.options.rounds):
            print(f"round {number + 1} of {self.options.rounds}", file=sys.stderr)
            for part in (self.small, self.smp, self.whole, self.boots, self.footprint):
                part()


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def facts(bench, load):
    """The lines above the tables."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown CPU")
    options = bench.options
    qemu = output("qemu-system-x86_64", "--version").splitlines()
    lines = [
        f"{datetime.date.today()}, {model}, {os.cpu_count()} CPUs, Linux {platform.release()}; Lodge "
        f"{output('git', '-C', str(peers.ROOT), 'rev-parse', '--short', 'HEAD') or 'unknown'}; {qemu[0] if qemu else 'no QEMU'}.",
        f"{options.rounds} round{'s' if options.rounds > 1 else ''}, {options.ms} ms for each workload; load average {load[0]:.1f} "
        f"before, {os.getloadavg()[0]:.1f} after. The guest's own clock; spread is of the ratio from round to round.",
    ]
    off = [f"{peer}, {what}: {100 * drift:+.1f} %" for peer, what, drift in bench.drifts if abs(drift) > 0.05]
    if off:
        lines.append("Guest clocks that disagree with the host's by more than 5 %: " + "; ".join(off) + ".")
    elif bench.drifts:
        lines.append("Every guest's clock agreed with the host's within 5 %.")
    return lines


def options_of(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="classes: " + ", ".join(report.CLASSES))
    parser.add_argument("--only", type=lambda words: set(words.split(",")), metavar="CLASS[,...]",
                        help="these classes or workloads")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--ms", type=int, help="time for each workload; default 300")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every value there")
    parser.add_argument("--no-tcg", action="store_true", help="leave the peer out")
    parser.add_argument("--quick", action="store_true", help="one short round, one TCG model, fewer boots")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.ms = options.ms or (60 if options.quick else 300)
    return options


def main():
    options = options_of(sys.argv[1:])
    if not options.no_tcg and not shutil.which("qemu-system-x86_64"):
        sys.exit("bench: no qemu-system-x86_64 (install qemu-system-x86, or give --no-tcg)")
    load = os.getloadavg()
    bench = Bench(options)
    try:
        bench.run()
    except KeyboardInterrupt:
        print("interrupted: what was measured so far", file=sys.stderr)
    lines = facts(bench, load)
    if options.json:
        options.json.write_text(json.dumps({"facts": lines, "results": bench.results, "clocks": bench.drifts}, indent=1) + "\n")
    tables = report.text(bench.results, lines)
    print(tables)
    if options.docs:
        report.write_docs(tables)


if __name__ == "__main__":
    main()
