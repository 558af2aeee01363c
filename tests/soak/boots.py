#!/usr/bin/python3
"""Boots the Debian guest of `make run` again and again: usage: boots.py [--count N] [--cpus N] [--load N] ...

Each boot shows its short session and powers off. One that has not ended within --patience seconds is a hang: the machine is
left running and its process id said, for a debugger. --load adds that many busy processes to the host.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
BUSY = "while True: pass"


def boot(options, number):
    """Seconds from start to power-off."""
    console = ROOT / "build" / f"boot{os.getpid()}.log"
    began = time.monotonic()
    environment = dict(os.environ, LODGE=str(options.lodge), CPUS=str(options.cpus), GUEST_IMAGE=str(options.image))
    with open(console, "w") as log:
        machine = subprocess.Popen([ROOT / "tools" / "run-guest", "--engine", options.engine], env=environment,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = machine.wait(options.patience)
        except subprocess.TimeoutExpired:
            print(f"boots: boot {number} has not ended after {options.patience} s; left running: pid {machine.pid}, "
                  f"console {console}")
            os._exit(1)
    text = console.read_text(errors="replace")
    if status != 0 or "end of the session" not in text:
        sys.exit(f"boots: boot {number} ended with {status}:\n{text[-2000:]}")
    console.unlink()
    return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--engine", default="soft")
    parser.add_argument("--patience", type=int, default=900)
    parser.add_argument("--lodge", default=ROOT / "build" / "lodge")
    parser.add_argument("--image", default=ROOT / "build" / "guest" / "debian")
    options = parser.parse_args()
    load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.load)]
    try:
        took = []
        for number in range(options.count):
            took.append(boot(options, number))
            print(f"boots: boot {number}: {took[-1]:.0f} s", flush=True)
    finally:
        for process in load:
            process.kill()
    print(f"boots: {len(took)} of {options.count} ended in order, in {min(took):.0f} to {max(took):.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
