"""Disks through the command line: what a guest writes is there after a reset, and after the machine is gone."""
import fcntl
import hashlib
import os
import re
import struct
import subprocess

import pytest
from conftest import lodge

MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"]
SECONDS = 240


@pytest.fixture
def boot(kernels, initramfs):
    """Boots the cloud kernel with a script and the given options; returns what came on the console."""
    def run(script, *options):
        kernel = kernels["cloud"]
        initrd = initramfs.build(script, MODULES, kernel)
        done = lodge("run", "--kernel", kernel / "vmlinux", "--initrd", initrd, "--append",
                     "console=ttyS0 quiet panic=-1", "--memory", "256M", "--net", "none", *options,
                     timeout=SECONDS)
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        assert "LODGE-TEST-END" in done.stdout, done.stdout[-3000:]
        return done.stdout.replace("\r", "")
    return run


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The first boot fills the file system and resets the machine, the second compares.
FILL_THEN_CHECK = """
mount -t ext4 /dev/vda /mnt || echo BAD-MOUNT
cd /mnt
if [ -e sums ]; then
    sha256sum -c sums && echo SUMS-HOLD
    cd /; umount /mnt
else
    i=0
    while [ $i -lt 20 ]; do
        dd if=/dev/urandom of=file$i bs=37k count=$((i + 1)) 2>/dev/null
        i=$((i + 1))
    done
    sha256sum file* > sums
    cd /; umount /mnt
    echo FILLED
    reboot -f
fi
"""


@pytest.mark.timeout(2 * SECONDS)
def test_a_file_system_survives_reset_and_end(boot, tmp_path):
    disk = tmp_path / "disk.img"
    subprocess.run(["truncate", "-s", "64M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    out = boot(FILL_THEN_CHECK, "--disk", disk)
    assert "FILLED" in out and "SUMS-HOLD" in out and "FAILED" not in out
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.timeout(2 * SECONDS)
def test_bytes_are_the_same_on_both_sides(boot, tmp_path):
    disk, second = tmp_path / "a.img", tmp_path / "b.img"
    disk.write_bytes(os.urandom(4 << 20))
    second.write_bytes(bytes(4 << 20))
    out = boot("""
sha256sum /dev/vda
dd if=/dev/vda of=/dev/vdb bs=13k 2>/dev/null && sync && echo COPIED
blockdev --getro /dev/vda | sed 's/^/READ-ONLY /'
dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>&1 | head -n 1
cat /sys/block/vda/size | sed 's/^/SECTORS /'
""", "--disk", f"{disk},ro", "--disk", second)
    assert re.search(r"^([0-9a-f]{64})  /dev/vda", out, re.M).group(1) == sha256(disk)
    assert "COPIED" in out and "READ-ONLY 1" in out and "SECTORS 8192" in out
    assert sha256(second) == sha256(disk)


def refused(kernels, *options):
    done = lodge("run", "--kernel", kernels["cloud"] / "vmlinux", "--net", "none", *options, timeout=60)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("lodge: engine ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_disk_in_use_is_refused(kernels, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with open(disk, "r+b") as held:
        lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, lock)
        line = refused(kernels, "--disk", disk)
    assert str(disk) in line and "another machine" in line


@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_disk_is_refused(kernels, tmp_path, size):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(size))
    assert "too small" in refused(kernels, "--disk", disk)


def test_a_missing_disk_is_refused(kernels, tmp_path):
    line = refused(kernels, "--disk", tmp_path / "none.img")
    assert "none.img" in line and "no such file" in line


def test_a_foreign_format_is_not_destroyed(kernels, tmp_path):
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(4096))
    assert "qcow2" in refused(kernels, "--disk", disk)
