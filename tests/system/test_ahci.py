"""SATA disks and CD-ROM drives, as Debian's generic kernel finds them (the cloud kernel has no AHCI driver)."""
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from conftest import lodge

HERE = pathlib.Path(__file__).parent
SECONDS = 300
DRIVERS = ["ahci", "sd_mod", "sr_mod"]

# What libata, the SCSI layer and the block layer say when something is wrong.
COMPLAINTS = re.compile(r"exception Emask|failed command|SError|error:|hard resetting|soft resetting|link is slow|"
                        r"qc timeout|failed to|limiting|I/O error|Sense Key|spurious|revalidation|disabled$|"
                        r"nobody cared|frozen|WARNING|BUG:|Call Trace|Unhandled", re.M)


def depends(module):
    """The modules that a .ko names in its `depends`."""
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in found.group(1).decode().split(",") if name] if found else []


def in_order(kernel, names):
    """The modules and what they need, each after what it needs."""
    files = {path.stem.replace("-", "_"): path for path in (kernel / "modules").rglob("*.ko")}
    order = []

    def add(name):
        path = files[name.replace("-", "_")]
        for needed in depends(path):
            add(needed)
        if path.stem not in order:
            order.append(path.stem)

    for name in names:
        add(name)
    return order


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    out = tmp_path_factory.mktemp("tool") / "drive-tool"
    subprocess.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", out,
                    HERE / "drive_tool.c"], check=True)
    return out


def with_libraries(program):
    """(host, guest) pairs of a program of this host and the libraries it is linked with."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = re.findall(r"(/\S+) \(0x", listed)
    return [(program, f"/bin/{pathlib.Path(program).name}")] + [(path, path) for path in paths]


@pytest.fixture
def boot(kernels, initramfs, tool):
    def run(script, *options, modules=(), files=(), append=""):
        kernel = kernels["generic"]
        script += "\ndmesg | sed 's/^/LOG /'\n"
        initrd = initramfs.build(script, in_order(kernel, DRIVERS + list(modules)), kernel,
                                 [(tool, "/bin/drive-tool"), *files])
        done = lodge("run", "--kernel", kernel / "vmlinuz", "--initrd", initrd, "--append",
                     f"console=ttyS0 quiet panic=-1 {append}", "--memory", "256M", "--net", "none", *options,
                     timeout=SECONDS)
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        assert "LODGE-TEST-END" in done.stdout, done.stdout[-3000:]
        out = done.stdout.replace("\r", "")
        log = "\n".join(line[4:] for line in out.splitlines() if line.startswith("LOG "))
        return out[:out.find("LOG ")], log
    return run


# Drivers probe in the background.
WAIT = """
wait_for() {
    i=0
    while [ ! -e $1 ] && [ $i -lt 100 ]; do sleep 0.2; i=$((i + 1)); done
    [ -e $1 ] || echo BAD-NO $1
}
"""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def quiet(log):
    found = [line for line in log.splitlines() if re.search(r"ata\d|ahci|sd |sr |cdrom|blk|irq", line)
             and COMPLAINTS.search(line)]
    assert not found, "\n".join(found)


def make_iso(folder, out):
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-J", "-R", "-V", "LODGE_TEST", "-o", out, folder],
                   check=True, capture_output=True)


@pytest.fixture
def iso(tmp_path):
    """An ISO 9660 image with a few files, and the sums of these."""
    if not shutil.which("xorriso"):
        pytest.skip("xorriso is not installed")
    folder = tmp_path / "files"
    folder.mkdir()
    for i, size in enumerate((1, 2047, 2048, 70_000, 1_500_000)):
        (folder / f"file{i}.bin").write_bytes(os.urandom(size))
    make_iso(folder, tmp_path / "test.iso")
    return tmp_path / "test.iso", {path.name: sha256(path) for path in folder.iterdir()}


def sums(out):
    return dict((name, value) for value, name in re.findall(r"^([0-9a-f]{64})  (?:.*/)?(\S+)$", out, re.M))


@pytest.mark.timeout(2 * SECONDS)
def test_a_file_system_on_a_sata_disk(boot, tmp_path):
    disk = tmp_path / "disk.img"
    subprocess.run(["truncate", "-s", "64M", disk], check=True)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    out, log = boot(WAIT + """
wait_for /dev/sda
mount -t ext4 -o discard /dev/sda /mnt || echo BAD-MOUNT
cd /mnt
for n in 1 2 3 4 5 6 7 8 9 10; do dd if=/dev/urandom of=file$n bs=37k count=$n 2>/dev/null; done
sha256sum file* > sums
sync
cd /; umount /mnt
mount -t ext4 -o discard /dev/sda /mnt || echo BAD-MOUNT
cd /mnt
sha256sum -c sums && echo SUMS-HOLD
rm file9 file10
fstrim -v /mnt
cd /; umount /mnt
echo SIZE $(cat /sys/block/sda/size) $(cat /sys/block/sda/queue/rotational) $(cat /sys/block/sda/ro)
""", "--disk", f"{disk},if=ahci", modules=["ext4", "crc32c_generic"])
    assert "BAD" not in out and "SUMS-HOLD" in out and "FAILED" not in out, out
    assert "SIZE 131072 0 0" in out and "trimmed" in out
    assert re.search(r"ata1.00: ATA-8: LODGE DISK", log) and "NCQ (depth 32)" in log
    assert "3 Gbps 0x3f impl SATA mode" in log and re.search(r"ata1: SATA max UDMA/133 abar .* irq", log)
    quiet(log)
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.timeout(2 * SECONDS)
def test_queued_commands(boot, tmp_path):
    disk = tmp_path / "disk.img"
    half = os.urandom(8 << 20)
    disk.write_bytes(half + bytes(8 << 20))
    out, log = boot(WAIT + """
wait_for /dev/sda
drive-tool queue /dev/sda 32 16777216
echo DEPTH $(cat /sys/block/sda/device/queue_depth) $(cat /sys/block/sda/queue/write_cache)
grep -E 'ahci' /proc/interrupts | sed 's/^/IRQ /'
drive-tool discard /dev/sda 0 1048576
dd if=/dev/zero of=/dev/sda bs=64k seek=64 count=1 conv=fsync 2>/dev/null
echo 1 > /sys/block/sda/device/queue_depth # without queueing
drive-tool queue /dev/sda 4 65536
""", "--disk", f"{disk},if=ahci")
    assert "QUEUED 32" in out and "BAD" not in out and "DISCARDED" in out and "QUEUED 4" in out, out
    assert "DEPTH 32 write back" in out
    assert re.search(r"IRQ .*PCI-MSI.*ahci", out)
    quiet(log)
    after = disk.read_bytes()
    assert after[8 << 20:] == half
    assert after[:1 << 20] == bytes(1 << 20)
    assert after[1 << 20:4 << 20] == half[1 << 20:4 << 20]
    assert after[4 << 20:(4 << 20) + 65536] == bytes(65536)


@pytest.mark.timeout(2 * SECONDS)
def test_interrupt_pin_and_many_vcpus(boot, tmp_path):
    """The same on INTx, with several vCPUs at the adapter at once."""
    disks = [tmp_path / "a.img", tmp_path / "b.img"]
    for disk in disks:
        disk.write_bytes(os.urandom(4 << 20) + bytes(4 << 20))
    out, log = boot(WAIT + """
wait_for /dev/sda; wait_for /dev/sdb
drive-tool queue /dev/sda 16 8388608 &
drive-tool queue /dev/sdb 16 8388608
wait
grep -E 'ahci' /proc/interrupts | sed 's/^/IRQ /'
""", "--disk", f"{disks[0]},if=ahci", "--disk", f"{disks[1]},if=ahci", "--cpus", "2", append="pci=nomsi")
    assert out.count("QUEUED 16") == 2 and "BAD" not in out, out
    assert re.search(r"IRQ .*IO-APIC.*ahci", out)
    quiet(log)
    for disk in disks:
        data = disk.read_bytes()
        assert data[:4 << 20] == data[4 << 20:]


@pytest.mark.timeout(2 * SECONDS)
def test_two_disks_and_a_cd(boot, tmp_path, iso):
    image, expected = iso
    first, second = tmp_path / "a.img", tmp_path / "b.img"
    first.write_bytes(os.urandom(2 << 20))
    second.write_bytes(bytes(2 << 20))
    out, log = boot(WAIT + """
wait_for /dev/sda; wait_for /dev/sdb; wait_for /dev/sr0
mount -t iso9660 -o ro /dev/sr0 /mnt || echo BAD-MOUNT
dd if=/dev/sda of=/dev/sdb bs=64k 2>/dev/null &
sha256sum /mnt/*
wait; sync
touch /mnt/x 2>/dev/null && echo BAD-WRITABLE
umount /mnt
lsblk -o NAME,SIZE,RO,RM,TYPE,MODEL,VENDOR,TRAN | sed 's/^/LSBLK /'
""", "--disk", f"{first},if=ahci", "--disk", f"{second},if=ahci", "--cdrom", image, modules=["isofs"],
                    files=with_libraries("/usr/bin/lsblk"))
    assert "BAD" not in out, out
    assert sums(out) == expected
    assert sha256(first) == sha256(second)
    assert re.search(r"LSBLK sda +2M +0 +0 disk", out) and re.search(r"LSBLK sdb +2M +0 +0 disk", out), out
    assert re.search(r"LSBLK sr0 +\S+ +1 +1 rom", out), out
    assert re.search(r"ata3.00: ATAPI: LODGE CD-ROM", log)
    quiet(log)


@pytest.mark.timeout(2 * SECONDS)
def test_eject(boot, iso):
    image, _ = iso
    out, log = boot(WAIT + """
wait_for /dev/sr0
drive-tool status /dev/sr0
mount -t iso9660 -o ro /dev/sr0 /mnt || echo BAD-MOUNT
drive-tool eject /dev/sr0
umount /mnt
drive-tool eject /dev/sr0
drive-tool status /dev/sr0
mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null && echo BAD-STILL-THERE
drive-tool close /dev/sr0
drive-tool status /dev/sr0
mount -t iso9660 -o ro /dev/sr0 /mnt && ls /mnt | sed 's/^/FILE /'
umount /mnt
drive-tool lock /dev/sr0
drive-tool status /dev/sr0
""", "--cdrom", image, modules=["isofs"])
    lines = [line for line in out.splitlines() if line.startswith(("TRAY", "BAD", "FILE"))]
    files = [f"FILE file{i}.bin" for i in range(5)]
    assert lines == ["TRAY status disc", "TRAY eject refused", "TRAY eject done",
                     "TRAY status open", "TRAY close done", "TRAY status disc",
                     *files, "TRAY lock done", "TRAY status disc"], out
    quiet("\n".join(line for line in log.splitlines() if not re.search(r"sr 0:|dev sr0", line)))


@pytest.mark.timeout(2 * SECONDS)
def test_more_drives_than_an_adapter_has_ports(boot, tmp_path):
    disks = []
    for i in range(7):
        disks.append(tmp_path / f"{i}.img")
        disks[-1].write_bytes(bytes([i + 1]) * (1 << 20))
    options = [word for disk in disks for word in ("--disk", f"{disk},if=ahci")]
    out, log = boot(WAIT + """
for d in a b c d e f g; do wait_for /dev/sd$d; done
for d in a b c d e f g; do dd if=/dev/sd$d bs=1 count=1 2>/dev/null | hexdump -e '"BYTE %d\\n"'; done
""", *options)
    assert sorted(re.findall(r"BYTE (\d)", out)) == list("1234567"), out
    assert "ata7" in log
    quiet(log)


def usage(*options):
    done = lodge("run", "--kernel", "/none", *options, timeout=60)
    assert done.returncode == 64, done.stderr
    return done.stderr


def test_wrong_usage():
    line = usage("--disk", "x.img,if=sata")
    assert "'sata'" in line and "if=virtio" in line and "if=ahci" in line
    assert "cannot be read-only" in usage("--disk", "x.img,ro,if=ahci")
    assert "which file" in usage("--cdrom", "")
    assert "did you mean if=ahci" in usage("--disk", "x.img,ifahci")


def test_a_missing_cd_is_refused(kernels, tmp_path):
    done = lodge("run", "--kernel", kernels["generic"] / "vmlinux", "--net", "none", "--cdrom",
                 tmp_path / "none.iso", timeout=60)
    assert done.returncode == 1 and "none.iso" in done.stderr and "no such file" in done.stderr
    assert "truncate" not in done.stderr
