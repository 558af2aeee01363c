#!/usr/bin/python3
"""Boot time of Debian's cloud kernel with a small initial RAM disk, Lodge's soft engine beside QEMU's TCG.

Runs in turn, A B A B ..., on whatever machine it is started on; prints each median and the ratio pair by pair.
usage: bench/boot.py [RUNS]
"""
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from conftest import CACHE, LODGE, Initramfs  # noqa: E402

APPEND = "console=ttyS0 quiet panic=-1"


def timed(command):
    start = time.monotonic()
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=300)
    if "LODGE-TEST-END" not in run.stdout:
        sys.exit(f"the guest did not reach its end: {command[0]}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return time.monotonic() - start


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    subprocess.run([ROOT / "tools" / "guest-kernels", CACHE / "kernels", "cloud"], check=True)
    kernel = CACHE / "kernels" / "cloud" / "vmlinux"
    with tempfile.TemporaryDirectory() as folder:
        initrd = Initramfs(pathlib.Path(folder)).build("")
        lodge = [LODGE, "run", "--engine", "soft", "--memory", "256M", "--net", "none", "--no-reboot",
                 "--kernel", kernel, "--initrd", initrd, "--append", APPEND]
        qemu = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "256M", "-nographic", "-no-reboot",
                "-nic", "none", "-kernel", kernel, "-initrd", initrd, "-append", APPEND]
        pairs = [(timed(lodge), timed(qemu)) for _ in range(runs + 1)][1:]  # the first pair warms the caches
    ours, theirs = zip(*pairs)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"boot to init and power-off, 1 vCPU, {runs} pairs, medians:")
    print(f"  lodge soft   {statistics.median(ours):6.2f} s  ({min(ours):.2f} to {max(ours):.2f})")
    print(f"  qemu tcg max {statistics.median(theirs):6.2f} s  ({min(theirs):.2f} to {max(theirs):.2f})")
    print(f"  lodge / qemu {ratio:6.2f}")


if __name__ == "__main__":
    main()
