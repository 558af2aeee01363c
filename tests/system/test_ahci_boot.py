"""What firmware boots of SATA drives: SeaBIOS's own AHCI driver reads them."""
import os
import shutil
import subprocess

import pytest
from conftest import lodge
from test_ahci import DRIVERS, in_order, quiet

GRUB = "/usr/lib/grub/i386-pc"


def say(word):
    """16-bit code that writes a word to the first serial port and ends the machine."""
    code = b"\xfa\xba\xf8\x03" + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in f"BOOTED-{word}\n".encode())
    code += b"\xb0\x00\xba\xf4\x00\xee\xf4\xeb\xfd"  # to the debug exit; halt
    return code + bytes(510 - len(code)) + b"\x55\xaa"


def make_disk(path, word):
    path.write_bytes(say(word) + bytes((1 << 20) - 512))
    return path


@pytest.fixture
def make_cd(tmp_path):
    if not shutil.which("xorriso"):
        pytest.skip("xorriso is not installed")

    def make(word):
        tree = tmp_path / f"tree-{word}"
        tree.mkdir()
        (tree / "boot.bin").write_bytes(say(word) + bytes(1536))
        out = tmp_path / f"{word}.iso"
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size",
                        "4", "-o", out, tree], check=True, capture_output=True)
        return out
    return make


def booted(*options):
    done = lodge("run", "--engine", "soft", "--memory", "64M", "--net", "none", "--debug-exit", *options, timeout=120)
    words = [line.split("BOOTED-")[1] for line in done.stdout.replace("\r", "").splitlines() if "BOOTED-" in line]
    assert len(words) == 1, done.stdout + done.stderr
    return words[0]


def test_a_sata_disk(tmp_path):
    assert booted("--disk", f"{make_disk(tmp_path / 'a', 'SATA')},if=ahci") == "SATA"


def test_a_cd(make_cd):
    assert booted("--cdrom", make_cd("CD")) == "CD"


def test_the_order_is_the_users(tmp_path, make_cd):
    disks = [make_disk(tmp_path / word, word) for word in ("A", "B")]
    cds = ["--cdrom", make_cd("C"), "--cdrom", make_cd("D")]
    sata_first = ["--disk", f"{disks[0]},if=ahci", "--disk", disks[1], *cds]
    virtio_first = ["--disk", disks[1], "--disk", f"{disks[0]},if=ahci", *cds]
    assert booted(*sata_first) == "A"
    assert booted(*virtio_first) == "B"
    assert booted(*sata_first, "--boot", "cdrom,disk") == "C"


def test_the_second_adapter(tmp_path, make_cd):
    """A CD behind six disks; of those firmware tries only the first."""
    options = []
    for i in range(6):
        options += ["--disk", f"{make_disk(tmp_path / str(i), f'DISK{i}')},if=ahci"]
    options += ["--cdrom", make_cd("CD")]
    assert booted(*options, "--boot", "cdrom") == "CD"
    assert booted(*options) == "DISK0"


@pytest.mark.timeout(600)
def test_grub_and_linux_from_a_cd(initramfs, kernels, tmp_path):
    if not shutil.which("grub-mkrescue") or not os.path.isdir(GRUB):
        pytest.skip("GRUB for BIOS is not installed")
    kernel = kernels["generic"]
    script = """
i=0; while [ ! -e /dev/sr0 ] && [ $i -lt 100 ]; do sleep 0.2; i=$((i + 1)); done
mount -t iso9660 -o ro /dev/sr0 /mnt && sha256sum /mnt/vmlinuz
dmesg | sed 's/^/LOG /'
"""
    tree = tmp_path / "tree"
    (tree / "boot" / "grub").mkdir(parents=True)
    shutil.copy(kernel / "vmlinuz", tree / "vmlinuz")
    shutil.copy(initramfs.build(script, in_order(kernel, DRIVERS + ["isofs"]), kernel), tree / "initrd")
    (tree / "boot" / "grub" / "grub.cfg").write_text(
        "linux /vmlinuz console=ttyS0 quiet panic=-1\ninitrd /initrd\nboot\n")
    subprocess.run(["grub-mkrescue", "-d", GRUB, "-o", tmp_path / "cd.iso", tree], check=True, capture_output=True)
    done = lodge("run", "--engine", "soft", "--memory", "512M", "--net", "none", "--cdrom", tmp_path / "cd.iso",
                 timeout=500)
    out = done.stdout.replace("\r", "")
    assert "Booting from DVD/CD" in out and "LODGE-TEST-END" in out, out[-3000:] + done.stderr
    sum_here = subprocess.run(["sha256sum", kernel / "vmlinuz"], capture_output=True, text=True).stdout.split()[0]
    assert f"{sum_here}  /mnt/vmlinuz" in out
    log = "\n".join(line[4:] for line in out.splitlines() if line.startswith("LOG "))
    assert "ahci 0000:00:1f.2" in log
    quiet(log)
