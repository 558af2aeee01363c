#!/usr/bin/python3
"""Keeps Debian under stress for a while: usage: stress.py [--seconds N] [--cpus N] [--engine NAME] ...

Boots a copy of the guest image of `make run`, logs in on the serial console, runs stress-ng with classes of work that
lean on different parts of the engine, and reads the kernel's log. Ends with 0 when stress-ng verified its work and the
kernel had nothing to complain of. The image has stress-ng in it (tools/guest-image).
"""
import argparse
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
IMAGE = ROOT / "build" / "guest" / "debian"
PROMPT = "soak-prompt> "

# One process of each, except where two vCPUs shall meet in the same work.
CLASSES = {
    "cpu": "--cpu 2",
    "vm": "--vm 2 --vm-bytes 96M --mmap 1 --mmap-bytes 32M --fault 1",
    "fork": "--fork 2 --vfork 1 --clone 1",
    "io": "--io 1 --hdd 1 --hdd-bytes 64M --pipe 1",
    "signals": "--kill 1 --sigchld 1 --sigfpe 1 --signal 1 --signest 1 --sigpending 1 --sigq 1 --sigrt 1 --sigsegv 1"
               " --sigsuspend 1 --sigtrap 1 --itimer 1 --timer 1",
    "threads": "--futex 1 --switch 1 --pthread 1",
}

# For --each: stress-ng's own classes but those that want a device or a GPU.
ALL = "cpu,cpu-cache,filesystem,interrupt,io,memory,network,os,pipe,scheduler,security,vm"
NOT = "cpu-online,env,mmaphuge,oom-pipe,smi"  # fewer CPUs, no memory left, no such thing

# What a healthy kernel never prints.
COMPLAINT = re.compile(
    r"BUG:|WARNING:|Oops|[Ss]oft lockup|hard LOCKUP|rcu: INFO|detected stall|Call Trace|general protection|segfault at|"
    r"traps: |blocked for more than|unable to handle|invalid opcode|Bad page|bad page|MCE|EXT4-fs error|I/O error|"
    r"clocksource: .*unstable|Kernel panic|Out of memory|unexpected IRQ|irq \d+: nobody cared|stack guard|double fault|"
    r"NETDEV WATCHDOG|hung_task|timed out")
# What some of its stressors are there for.
PROVOKED = re.compile(r"Out of memory|segfault at|traps: |general protection|invalid opcode|stack guard")


class Console:
    """The guest's first serial port: sends lines, waits for text."""

    def __init__(self, machine, log):
        self.machine, self.log, self.seen = machine, log, ""

    def read(self, timeout):
        ready, _, _ = select.select([self.machine.stdout], [], [], timeout)
        if not ready:
            return False
        chunk = os.read(self.machine.stdout.fileno(), 65536).decode(errors="replace")
        if not chunk:
            sys.exit(f"soak: the machine ended early; the console is in {self.log.name}")
        self.log.write(chunk)
        self.log.flush()
        self.seen += chunk.replace("\r", "")
        return True

    def wait(self, text, seconds):
        """What came before `text`; it and what is before are taken."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left <= 0:
                sys.exit(f"soak: no {text!r} within {seconds} s; the console is in {self.log.name}")
            self.read(min(left, 5))
        before, _, self.seen = self.seen.partition(text)
        return before

    def send(self, line):
        self.machine.stdin.write(line.encode() + b"\n")
        self.machine.stdin.flush()

    def run(self, command, seconds):
        """Runs a shell command in the guest: (its output, its status)."""
        self.send(command + '; echo "soak-status=$?"')
        self.wait("soak-status=$?", 60)  # the echo of the line itself
        self.wait("\n", 60)
        output = self.wait("soak-status=", seconds)
        status = int(self.wait("\n", 60))
        self.wait(PROMPT, 60)
        return output, status


def log_in(console):
    console.wait("login: ", 600)
    console.send("root")
    console.wait("Password: ", 120)
    console.send("lodge")
    console.wait("# ", 120)
    console.send(f"stty cols 4000; bind 'set enable-bracketed-paste off'; PS1='soak-''prompt> '")
    console.wait(PROMPT, 60)


def stress(console, options):
    parts = [part for name, part in CLASSES.items() if name in options.classes]
    words = f"{' '.join(parts)} --timeout {options.seconds}s --verify"
    if options.each:
        words = f"--class {ALL} --exclude {NOT} --sequential {options.cpus} --timeout {options.each}s"
    console.run(f"systemd-run --quiet --property=TasksMax=infinity --property=OOMPolicy=continue sh -c 'stress-ng {words} --metrics-brief > /var/tmp/stress 2>&1; "
                "echo $? > /var/tmp/stress.status'", 120)
    deadline = time.monotonic() + 3 * options.seconds + 3600
    while not (status := poll(console)) and time.monotonic() < deadline:
        pass
    output, _ = console.run("grep -v -e info: /var/tmp/stress | tail -n 300", 300)
    print(output)
    return [] if status == "0" else [f"stress-ng ended with {status or 'nothing in time'}"]


def poll(console):
    """stress-ng's status, or nothing while it runs. Some stressors end the login, which is made again."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        console.read(1)
    if console.seen.rstrip().endswith("login:"):
        log_in(console)
    console.seen = ""
    output, _ = console.run("cat /var/tmp/stress.status 2>/dev/null", 600)
    return output.strip()


def complaints(console, options):
    output, _ = console.run("dmesg", 120)
    lines = [line for line in output.splitlines() if COMPLAINT.search(line)]
    return [line for line in lines if not (options.each and PROVOKED.search(line))]


def work(console, options):
    log_in(console)
    print(f"soak: logged in after {time.monotonic() - options.start:.0f} s", flush=True)
    found = stress(console, options)
    output, _ = console.run("uptime; free -m; systemctl --failed --no-legend | cat", 300)
    print(output)
    found += complaints(console, options)
    console.send("systemctl poweroff")
    deadline = time.monotonic() + 300
    while console.machine.poll() is None and time.monotonic() < deadline:
        try:
            console.read(1)
        except SystemExit:
            break
    code = console.machine.wait(60)
    return found if code == 0 else found + [f"the machine ended with status {code}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--engine", default="soft")
    parser.add_argument("--classes", default=",".join(CLASSES), help="some of " + ",".join(CLASSES))
    parser.add_argument("--each", type=int, metavar="SECONDS", help="every stressor there is, one after the other for so long")
    parser.add_argument("--log", default=ROOT / "build" / "soak.log")
    options = parser.parse_args()
    options.classes = options.classes.split(",")
    options.start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder, open(options.log, "w") as log:
        disk = pathlib.Path(folder) / "disk.raw"
        subprocess.run(["cp", "--sparse=always", IMAGE / "disk.raw", disk], check=True)
        machine = subprocess.Popen(
            [ROOT / "build" / "lodge", "run", "--engine", options.engine, "--cpus", str(options.cpus), "--memory",
             options.memory, "--kernel", IMAGE / "vmlinuz", "--initrd", IMAGE / "initrd", "--append",
             "root=LABEL=root ro console=ttyS0 quiet", "--disk", disk, "--net", "user"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            found = work(Console(machine, log), options)
        finally:
            machine.kill()
            machine.wait()
    for line in found:
        print(f"soak: {line}")
    length = f"every stressor for {options.each} s" if options.each else f"{options.seconds} s of stress"
    print(f"soak: {length} on {options.cpus} vCPUs, engine {options.engine}: "
          f"{'FAILED' if found else 'no complaint'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
