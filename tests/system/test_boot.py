"""Unmodified Debian kernels boot to user space and power off."""
import os

import pytest

from conftest import lodge

SCRIPT = """
uname -r
echo CPUS $(grep -c ^processor /proc/cpuinfo)
echo CLOCK $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
dmesg | grep -E 'WARNING|BUG:|Oops|Call Trace|rcu: INFO|soft lockup|ACPI.*(Error|Exception)' && echo COMPLAINT
"""

CASES = [
    ("cloud", "vmlinuz", 1), ("cloud", "vmlinuz", 2), ("cloud", "vmlinuz", 4),
    ("cloud", "vmlinux", 1), ("cloud", "vmlinux", 2),
    ("generic", "vmlinuz", 1), ("generic", "vmlinux", 4),
]


@pytest.mark.parametrize("name,image,cpus", CASES, ids=[f"{n}-{i}-{c}" for n, i, c in CASES])
def test_boot(kernels, initramfs, engines, name, image, cpus):
    if not engines["soft"]["usable"]:
        pytest.fail(engines["soft"]["reason"])
    initrd = initramfs.build(SCRIPT)
    run = lodge("run", "--engine", "soft", "--cpus", cpus, "--memory", "512M", "--net", "none",
                "--kernel", kernels[name] / image, "--initrd", initrd,
                "--append", "console=ttyS0 quiet panic=-1", "--no-reboot", timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "LODGE-TEST-END" in run.stdout, run.stdout + run.stderr
    assert f"CPUS {cpus}" in run.stdout, run.stdout
    assert "COMPLAINT" not in run.stdout, run.stdout


# Forms of the soft engine (src/cpu/soft/tuning.h): all of them pass over most of the kernel's code.
FORMS = [("runs=1", 2), ("block=1,runs=1", 1), ("slow,runs=4", 1), ("flush=500,runs=2", 1), ("code=1024,runs=4", 2), ("forget,runs=2", 2),
         ("lockstep,runs=1", 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form,cpus", FORMS, ids=[form for form, _ in FORMS])
def test_boot_stressed(kernels, initramfs, form, cpus):
    initrd = initramfs.build(SCRIPT)
    run = lodge("run", "--engine", "soft", "--cpus", cpus, "--memory", "512M", "--net", "none",
                "--kernel", kernels["cloud"] / "vmlinux", "--initrd", initrd,
                "--append", "console=ttyS0 quiet panic=-1", "--no-reboot", timeout=600,
                env={**os.environ, "LODGE_SOFT": form})
    assert run.returncode == 0, run.stdout + run.stderr
    assert "LODGE-TEST-END" in run.stdout, run.stdout + run.stderr
    assert f"CPUS {cpus}" in run.stdout, run.stdout
    assert "COMPLAINT" not in run.stdout, run.stdout
