"""Debian's SeaBIOS and OVMF from the reset vector, unmodified boot loaders from a disk, and what they find."""
import pathlib
import re
import struct
import subprocess

import pytest

from conftest import lodge

SECTOR = 512
PARTITION = 2048  # sectors
SIZE = 64 << 20
GRUB = pathlib.Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ["biosdisk", "part_msdos", "fat", "normal", "linux", "serial", "terminal", "echo", "lsmmap", "mmap",
                "halt", "reboot", "test", "acpi"]
SYSLINUX_MBR = pathlib.Path("/usr/lib/syslinux/mbr/mbr.bin")
MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"]
FLAG = 2040  # a sector before the partition that no loader uses
SECONDS = 240


def partition_table():
    """One active FAT32 partition to the end of the disk."""
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x0c, b"\xfe\xff\xff", PARTITION,
                        SIZE // SECTOR - PARTITION)
    return entry + bytes(48) + b"\x55\xaa"


class Disk:
    """A raw image with a master boot record and a FAT file system, made without mounting anything."""

    def __init__(self, path):
        self.path = path
        self.fat = f"{path}@@{PARTITION * SECTOR}"
        path.write_bytes(bytes(510) + b"\x55\xaa")
        with open(path, "r+b") as image:
            image.truncate(SIZE)
            image.seek(446)
            image.write(partition_table())
        self.mtools("mformat", "-i", self.fat, "-F", "-T", str(SIZE // SECTOR - PARTITION), "-h", "255", "-s", "63",
                    "-H", str(PARTITION), "::")

    def mtools(self, *args):
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL)

    def copy(self, source, name):
        self.mtools("mcopy", "-i", self.fat, str(source), f"::{name}")

    def text(self, name, text):
        source = self.path.with_suffix(".text")
        source.write_text(text)
        self.copy(source, name)

    def boot_code(self, code, rest=b""):
        assert len(code) <= 446 and len(rest) < (FLAG - 1) * SECTOR
        with open(self.path, "r+b") as image:
            image.write(code)
            image.seek(SECTOR)
            image.write(rest)

    def grub(self, config):
        """GRUB's boot sector, its core in the sectors behind it, and a configuration."""
        core = self.path.with_suffix(".core")
        subprocess.run(["grub-mkimage", "-O", "i386-pc", "-d", GRUB, "-p", "(hd0,msdos1)/", "-o", core, *GRUB_MODULES],
                       check=True)
        self.boot_code((GRUB / "boot.img").read_bytes()[:440], core.read_bytes())
        self.text("grub.cfg", config)

    def syslinux(self, config):
        subprocess.run(["syslinux", "--offset", str(PARTITION * SECTOR), "--install", self.path], check=True)
        self.boot_code(SYSLINUX_MBR.read_bytes()[:440])
        self.text("syslinux.cfg", config)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path / "disk.raw")


def run(disk, *options, memory="512M", timeout=SECONDS):
    done = lodge("run", "--engine", "soft", "--memory", memory, "--net", "none", "--disk", disk.path, *options,
                 timeout=timeout)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    return done.stdout.replace("\r", ""), done.stderr


def linux(initramfs, kernels, disk, script, append="", modules=()):
    kernel = kernels["cloud"]
    disk.copy(kernel / "vmlinuz", "vmlinuz")
    disk.copy(initramfs.build(script, modules, kernel), "initrd")
    return f"console=ttyS0 quiet panic=-1 {append}"


def grub_linux(initramfs, kernels, disk, script, append="", modules=()):
    append = linux(initramfs, kernels, disk, script, append, modules)
    disk.grub(f"linux /vmlinuz {append}\ninitrd /initrd\nboot\n")


COMPLAINTS = """
dmesg | grep -E 'WARNING|BUG:|Oops|Call Trace|ACPI.*(Error|Exception|BIOS)|Firmware Bug|no compatible bridge' && echo COMPLAINT
"""

FACTS = COMPLAINTS + """
echo CPUS $(grep -c ^processor /proc/cpuinfo)
echo VENDOR $(cat /sys/class/dmi/id/sys_vendor), BIOS $(cat /sys/class/dmi/id/bios_vendor)
cd /sys/firmware/acpi/tables
for t in DSDT APIC MCFG FACP FACS; do [ -e $t ] && echo TABLE $t; done
for t in DSDT APIC MCFG; do echo SUM $t $(md5sum < $t); done
"""


def test_grub_boots_linux(initramfs, kernels, disk):
    """The way of an installed system; the tables are those that a kernel booted directly finds."""
    grub_linux(initramfs, kernels, disk, FACTS)
    out, _ = run(disk, "--cpus", 2)
    assert "SeaBIOS (version" in out
    assert "LODGE-TEST-END" in out, out[-3000:]
    assert "COMPLAINT" not in out, out[-3000:]
    assert "CPUS 2" in out
    assert "VENDOR Lodge, BIOS SeaBIOS" in out
    assert set(re.findall(r"TABLE (\S+)", out)) == {"DSDT", "APIC", "MCFG", "FACP", "FACS"}
    direct = lodge("run", "--engine", "soft", "--memory", "512M", "--net", "none", "--cpus", 2, "--kernel",
                   kernels["cloud"] / "vmlinuz", "--initrd", initramfs.build(FACTS), "--append",
                   "console=ttyS0 quiet panic=-1", timeout=SECONDS)
    sums = re.findall(r"SUM (\S+) (\w+)", out)
    assert len(sums) == 3
    assert sums == re.findall(r"SUM (\S+) (\w+)", direct.stdout)


def test_syslinux_boots_linux(initramfs, kernels, disk):
    """Loads the kernel's own setup code, which runs in real mode and asks the BIOS for the memory map."""
    append = linux(initramfs, kernels, disk, COMPLAINTS)
    disk.syslinux(f"SERIAL 0 115200\nDEFAULT lodge\nLABEL lodge\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {append}\n")
    out, _ = run(disk)
    assert "SYSLINUX" in out
    assert "LODGE-TEST-END" in out, out[-3000:]
    assert "COMPLAINT" not in out, out[-3000:]


RESET_ONCE = f"""
if [ "$(dd if=/dev/vda bs={SECTOR} skip={FLAG} count=1 2>/dev/null | head -c 4)" != done ]; then
    echo done | dd of=/dev/vda bs={SECTOR} seek={FLAG} conv=sync,notrunc 2>/dev/null
    sync
    reboot -f
fi
echo SECOND-TIME
"""


@pytest.mark.parametrize("how", ["acpi", "kbd", "pci", "triple", "bios"])
def test_reset_goes_through_the_firmware(initramfs, kernels, disk, how):
    grub_linux(initramfs, kernels, disk, RESET_ONCE, f"reboot={how}", MODULES)
    out, err = run(disk)
    assert out.count("SeaBIOS (version") == 2, out[-3000:]
    assert "SECOND-TIME" in out, out[-3000:]
    assert err.count("the guest reset") == 1


MAPS = {  # size: what the kernel is told is usable
    "3G": ["0x0000000000000000-0x000000000009fbff", "0x0000000000100000-0x00000000afff....",
           "0x0000000100000000-0x000000010fffffff"],
    "5G": ["0x0000000000000000-0x000000000009fbff", "0x0000000000100000-0x00000000afff....",
           "0x0000000100000000-0x000000018fffffff"],
}


@pytest.mark.parametrize("size", MAPS)
def test_memory_map(initramfs, kernels, disk, size):
    pages = int(size[:-1]) << 18
    if pages > int(re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) // 4:
        pytest.skip(f"this host has less than {size} of memory")
    grub_linux(initramfs, kernels, disk, COMPLAINTS + "\ndmesg | grep BIOS-e820\ngrep MemTotal /proc/meminfo\n")
    out, _ = run(disk, memory=size)
    assert "COMPLAINT" not in out, out[-3000:]
    usable = re.findall(r"\[mem (\S+)\] usable", out)
    assert len(usable) == len(MAPS[size]), usable
    for found, pattern in zip(usable, MAPS[size]):
        assert re.fullmatch(pattern, found), usable
    reserved = [[int(end, 16) for end in found.split("-")] for found in re.findall(r"\[mem (\S+)\] reserved", out)]
    assert any(first <= 0xb0000000 and last >= 0xbfffffff for first, last in reserved), reserved # ECAM
    assert int(re.search(r"MemTotal: +(\d+)", out).group(1)) > pages * 4 * 0.92


def test_small_memory_and_power_off_by_grub(disk):
    """32 MiB hold no kernel of today: GRUB shows the map, and switches off by what the ACPI tables say."""
    disk.grub("lsmmap\nhalt\n")
    out, _ = run(disk, memory="32M")
    found = re.findall(r"base_addr = (0x[0-9a-f]+), length = (0x[0-9a-f]+), available RAM", out)
    ranges = [(int(base, 16), int(base, 16) + int(length, 16)) for base, length in found]
    assert ranges[0] == (0, 0x9fc00), out
    assert ranges[1][0] == 0x100000 and 0x1ff0000 <= ranges[1][1] <= 0x2000000, out
    assert len(ranges) == 2


def test_several_disks_and_cpus(initramfs, kernels, disk, tmp_path):
    """The first disk is the one that is booted from; the machine has more than firmware's one CPU to wake."""
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(1 << 20))
    grub_linux(initramfs, kernels, disk, COMPLAINTS + "\necho CPUS $(grep -c ^processor /proc/cpuinfo)\n")
    out, _ = run(disk, "--disk", other, "--cpus", 4)
    assert "CPUS 4" in out, out[-3000:]
    assert "COMPLAINT" not in out, out[-3000:]


UEFI_LINUX = "fs0:\\vmlinuz {append} initrd=\\initrd\r\n"


def test_uefi_boots_linux(initramfs, kernels, disk):
    """The shell of Debian's OVMF starts the kernel by its EFI stub; tables are OVMF's copies of the machine's."""
    append = linux(initramfs, kernels, disk, FACTS + "\n[ -d /sys/firmware/efi ] && echo EFI\n")
    disk.text("startup.nsh", UEFI_LINUX.format(append=append))
    out, _ = run(disk, "--firmware", "uefi", "--cpus", 2)
    assert "UEFI Interactive Shell" in out, out[-3000:]
    assert "LODGE-TEST-END" in out, out[-3000:]
    assert "COMPLAINT" not in out, out[-3000:]
    assert "EFI\n" in out and "CPUS 2" in out and "VENDOR Lodge" in out
    assert set(re.findall(r"TABLE (\S+)", out)) == {"DSDT", "APIC", "MCFG", "FACP", "FACS"}


def test_uefi_variables_are_kept(disk, tmp_path):
    """The shell keeps what `set` was told in the firmware's variables, which a file has."""
    variables = tmp_path / "variables"
    disk.text("startup.nsh", "echo FOUND %keeper%.\r\nset keeper house\r\nreset -s\r\n")
    for expected in "%keeper%", "house":
        out, _ = run(disk, "--firmware", f"uefi,vars={variables}")
        assert f"FOUND {expected}." in out, out[-2000:]
    out, _ = run(disk, "--firmware", "uefi") # without a file they are forgotten
    assert "FOUND %keeper%." in out, out[-2000:]
    variables.write_bytes(bytes(4096))
    status, line = refused("--firmware", f"uefi,vars={variables}")
    assert status == 1 and str(variables) in line and "4096 bytes" in line


def banner(*options, seconds=10):
    """What comes on the serial console before the machine is killed."""
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        lodge("run", "--engine", "soft", "--net", "none", *options, timeout=seconds)
    return (expired.value.stdout or b"").decode(errors="replace")


def test_nothing_to_boot(tmp_path):
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    out = banner("--disk", empty, "--memory", "64M")
    assert "SeaBIOS (version" in out
    assert "not a bootable disk" in out
    assert "No bootable device" in out


def refused(*options):
    done = lodge("run", "--engine", "soft", *options)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("options,words", [
    (["--firmware", "bios", "--kernel", "x"], ["--firmware", "--kernel"]),
    (["--disk", "x", "--append", "y"], ["--append", "--kernel"]),
    (["--disk", "x", "--boot", "disc"], ["did you mean disk"]),
    (["--disk", "x", "--boot", "disk,disk"], ["twice"]),
    (["--firmware", ""], ["--firmware"]),
    (["--firmware", "bios,vars=x"], ["uefi,vars=FILE"]),
    (["--firmware", "uefi,vars="], ["uefi,vars=FILE"]),
], ids=lambda value: " ".join(value))
def test_usage(options, words):
    status, line = refused(*options)
    assert status == 64, line
    for word in words:
        assert word in line


def test_images_that_cannot_be_firmware(tmp_path):
    (tmp_path / "odd").write_bytes(bytes(1000))
    (tmp_path / "empty").write_bytes(b"")
    for name, word in ("odd", "multiple of 4 KiB"), ("empty", "multiple of 4 KiB"), ("missing", "No such file"), \
            (".", "regular file"):
        status, line = refused("--firmware", tmp_path / name)
        assert status == 1
        assert word in line and str(tmp_path / name) in line
