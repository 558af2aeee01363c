"""Runs every freestanding guest (see README.md) on every usable engine."""
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LODGE_BUILD", ROOT / "build"))
LODGE = os.environ.get("LODGE", str(BUILD / "lodge"))
GUESTS = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("*.c"))
PASS = 33
TRIPLE_FAULT = 0  # --no-reboot


def settings(name):
    """The GUEST: line of the guest's source."""
    source = (ROOT / "tests/guest" / f"{name}.c").read_text()
    line = re.search(r"GUEST:\s*([^\n*]*)", source)
    return dict(pair.split("=", 1) for pair in line.group(1).split()) if line else {}


def engines():
    """{name: reason it cannot be used, or None}, as `lodge doctor` says."""
    try:
        done = subprocess.run([LODGE, "doctor", "--json"], capture_output=True, text=True, timeout=60)
        found = json.loads(done.stdout)["engines"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        return {"soft": f"lodge doctor does not work: {error}"}
    return {e["name"]: None if e["usable"] else e["reason"] for e in found}


ENGINES = engines()
if os.environ.get("LODGE_GUEST_ORACLE"):
    ENGINES["qemu"] = None if shutil.which("qemu-system-x86_64") else "no qemu-system-x86_64"


def make_disk(path, size):
    """Each sector is full of its own number, so that a guest can check what it reads."""
    count = int(size.rstrip("K")) * 2
    path.write_bytes(b"".join(struct.pack("<I", n) * 128 for n in range(count)))


def qemu_command(guest, opts, disk):
    command = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-display", "none",
               "-smp", opts.get("cpus", "1"), "-m", opts.get("memory", "64M"), "-kernel", guest,
               "-append", "tcg " + opts.get("append", "").replace(",", " "), "-serial", "stdio", "-monitor",
               "none", "-device", "isa-debug-exit,iobase=0xf4", "-device",
               "virtio-rng-pci,disable-legacy=on"]
    if disk:
        command += ["-drive", f"file={disk},format=raw,if=none,id=d", "-device",
                    "virtio-blk-pci,drive=d,disable-legacy=on"]
    return command if opts.get("reboot") else command + ["-no-reboot"]


def lodge_command(engine, guest, opts, disk):
    command = [LODGE, "run", "--engine", engine, "--cpus", opts.get("cpus", "1"), "--memory",
               opts.get("memory", "64M"), "--kernel", guest, "--debug-exit", "--serial", "stdio",
               "--net", "none"]
    if not opts.get("reboot"):
        command += ["--no-reboot"]
    command += ["--append", f"{engine} " + opts.get("append", "").replace(",", " ")]
    if disk:
        command += ["--disk", f"{disk},format=raw"]
    return command


# How the soft engine is stressed (src/cpu/soft/tuning.h); on one CPU it also runs in lock-step.
FORMS = ["runs=1", "block=1,runs=1", "slow,runs=4", "flush=50,runs=1", "code=512,runs=1", "forget,runs=1", "interpret",
         "lockstep,runs=1"]
# Guests whose time goes into waiting or that say nothing about instructions.
UNSTRESSED = {"hello", "poweroff", "reboot", "reset", "reset_kbc", "rtc", "uart"}


def run_guest(engine, name, tmp_path, form=""):
    opts = settings(name)
    guest = str(BUILD / "guests" / f"{name}.elf")
    disk = None
    if "disk" in opts:
        disk = tmp_path / "disk.img"
        make_disk(disk, opts["disk"])
    make = qemu_command if engine == "qemu" else lambda *a: lodge_command(engine, *a)
    done = subprocess.run(make(guest, opts, disk), stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=float(opts.get("timeout", 60)), env={**os.environ, "LODGE_SOFT": form})
    return opts, done.returncode, done.stdout.decode("latin-1") + done.stderr.decode("latin-1")


def judge(opts, status, output):
    """Asserts that a guest ended as its GUEST: line says it should."""
    if opts.get("expect") == "reset":
        assert status == TRIPLE_FAULT, output
        assert "READY TO RESET" in output and "FAIL" not in output, output
    elif opts.get("expect") == "poweroff":
        assert status == 0, output
        assert "READY TO POWER OFF" in output and "FAIL" not in output, output
    else:
        assert status == PASS and "PASS: " in output, f"status {status}\n{output}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GUESTS)
def test_guest(name, engine, tmp_path):
    if ENGINES[engine]:
        pytest.skip(f"engine {engine}: {ENGINES[engine]}")
    judge(*run_guest(engine, name, tmp_path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in GUESTS if name not in UNSTRESSED])
def test_guest_stressed(name, form, tmp_path):
    if "soft" not in ENGINES or ENGINES["soft"]:
        pytest.fail(f"engine soft: {ENGINES.get('soft', 'not there')}")
    if "lockstep" in form and settings(name).get("cpus", "1") != "1":
        pytest.skip("lock-step is for one CPU")
    judge(*run_guest("soft", name, tmp_path, form))
