"""Who is measured: this machine itself, Lodge's soft engine, QEMU's TCG. How each is started, read and ended."""
import os
import pathlib
import re
import selectors
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LODGE = pathlib.Path(os.environ.get("LODGE", ROOT / "build" / "lodge"))
CACHE = ROOT / "build" / "guest"  # shared with the tests
WORK = ROOT / "build" / "bench"
IMAGE = CACHE / "bench"
KERNEL = CACHE / "kernels" / "cloud" / "vmlinux"
APPEND = "console=ttyS0 quiet panic=-1"
TCG = {"tcg-max": "max", "tcg-nehalem": "Nehalem"}

# A peer that prints nothing for so long hangs; the longest jobs and a limit per workload (main.c) lie below it.
SILENCE_SECONDS = 300
LIMIT_SECONDS = 3600


class Machine:
    """The shape every peer's guest gets."""

    def __init__(self, append="", kernel=None, initrd=None, cpus=1, memory=512, disks=()):
        self.append = f"{APPEND} {append}".strip()
        self.kernel = kernel or KERNEL
        self.initrd = initrd or WORK / "initrd"
        self.cpus, self.memory = cpus, memory
        self.disks = disks  # (path, read-only) pairs

    def command(self, peer):
        common = ["-kernel", self.kernel, "-initrd", self.initrd, "-append", self.append, "-no-reboot"]
        if peer == "lodge":
            command = [LODGE, "run", "--engine", "soft", "--cpus", self.cpus, "--memory", f"{self.memory}M", "--net", "none"]
            command += ["-" + word if str(word) in ("-kernel", "-initrd", "-append", "-no-reboot") else word for word in common]
            for path, read_only in self.disks:
                command += ["--disk", f"{path}{',ro' if read_only else ''}"]
            return list(map(str, command))
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", TCG[peer], "-smp", self.cpus, "-m", f"{self.memory}M",
                   "-object", f"memory-backend-memfd,id=ram,size={self.memory}M", "-M", "q35,memory-backend=ram",
                   "-display", "none", "-serial", "stdio", "-nic", "none", *common]
        for path, read_only in self.disks:
            command += ["-drive", f"file={path},format=raw,if=virtio,readonly={'on' if read_only else 'off'}"]
        return list(map(str, command))


def lines_of(command, until=None, silence=SILENCE_SECONDS, started=None, **options):
    """Starts the command and yields (seconds since the start, line). Ends it after `silence` or LIMIT_SECONDS, or once
    `until` is seen in what has no newline yet. `started` is called with the process."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    try:
        if started:
            started(process)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            rest = b""
            while selector.select(silence):
                data = os.read(process.stdout.fileno(), 65536)
                now = time.monotonic() - start
                *complete, rest = (rest + data).split(b"\n")
                if until and until in rest:
                    complete.append(rest)
                for line in complete:
                    yield now, line.decode(errors="replace").strip()
                if not data or now > LIMIT_SECONDS or (until and until in rest):
                    return
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def pin(cpus):
    """For preexec_fn: the child may use the first so many CPUs of ours."""
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cpus:])


def native_command(names, ms):
    return [str(WORK / "bench"), "--ms", str(ms), *names]


def native_jobs_command(names, ms):
    inside = f"mount -t proc proc {IMAGE}/root/proc; exec chroot {IMAGE}/root /mnt/jobs {ms} {' '.join(names)}"
    return [*([] if os.getuid() == 0 else ["sudo"]), "unshare", "--mount", "--propagation", "private", "sh", "-c", inside]


RESULT = re.compile(r"^([a-z0-9_-]+) (failed|skipped|bytes-per-second|per-second|[0-9.]+) ?(.*)$")


class Run:
    """What one start of one peer printed: values by workload (nanoseconds, or a string that says why not)."""

    def __init__(self, values=None):
        self.values = values or {}
        self.to_init = None    # seconds from the process's start to the guest's first program
        self.clock_drift = None  # guest's time over host's time, less one
        self.ended = False
        self.tail = []
        self._marks = {}

    def take(self, seconds, line):
        mark = re.match(r"^(BENCH-START|BENCH-END) (\d+)$", line)
        result = RESULT.match(line)
        if mark:
            self._marks[mark[1]] = (seconds, int(mark[2]) / 1e9)
            if mark[1] == "BENCH-START":
                self.to_init = seconds
            else:
                self._end()
        elif result:
            self.values[result[1]] = self._value(*result.groups()[1:])
        else:
            self.tail = self.tail[-20:] + [line]

    def _end(self):
        self.ended = True
        if "BENCH-START" in self._marks:
            host, guest = (self._marks["BENCH-END"][i] - self._marks["BENCH-START"][i] for i in (0, 1))
            if host > 2:
                self.clock_drift = guest / host - 1

    @staticmethod
    def _value(first, second):
        if first in ("failed", "skipped"):
            return f"{first}: {second}" if second else first
        try:
            if first == "bytes-per-second":
                return 1024e9 / float(second)  # ns for each KiB
            return 1e9 / float(second) if first == "per-second" else float(first)
        except (ValueError, ZeroDivisionError):
            return "failed: odd output"


def measure(peer, names, ms, machine=None, jobs=False, started=None):
    """Runs the named workloads on one peer. One that hangs the peer is 'failed', the rest are tried once more."""
    total = Run()
    for _ in range(3):
        names = [name for name in names if name not in total.values]
        if not names:
            break
        run = one_start(peer, names, ms, machine, jobs, started)
        total.values.update(run.values)
        total.to_init = total.to_init or run.to_init
        total.clock_drift = run.clock_drift if run.clock_drift is not None else total.clock_drift
        total.tail = run.tail
        missing = [name for name in names if name not in run.values]
        if missing:
            total.values[missing[0]] = "failed: " + ("no answer" if run.to_init else "did not start")
            print(f"  {peer}: {missing[0]}: {total.values[missing[0]]}; its last words: {' | '.join(run.tail[-3:])}", file=sys.stderr)
        if peer != "native" and run.to_init is None:
            break
    for name in names:
        total.values.setdefault(name, "failed: did not run")
    return total


def one_start(peer, names, ms, machine, jobs, started):
    run, options = Run(), {}
    if peer == "native":
        command = native_jobs_command(names, ms) if jobs else native_command(names, ms)
        options["preexec_fn"] = pin(machine.cpus)
    else:
        command = machine.command(peer)
        at = command.index(machine.append)
        command[at] += f" bench.ms={ms} bench.run={','.join(names)}"
    try:
        for seconds, line in lines_of(command, started=started, **options):
            run.take(seconds, line)
    except OSError as error:
        run.tail.append(str(error))
    return run


class FootPrint:
    """Follows a process's memory beyond its guest's RAM: the highest sum of Pss over all mappings but the RAM's memfd."""

    RAM = ("/memfd:lodge-memory", "/memfd:memory-backend-memfd")

    def __init__(self, interval=0.2):
        self.peak_kib, self.interval = 0, interval

    def follow(self, process):
        threading.Thread(target=self._run, args=(process.pid,), daemon=True).start()

    def _run(self, pid):
        try:
            while True:
                self.peak_kib = max(self.peak_kib, self._sample(pid))
                time.sleep(self.interval)
        except OSError:
            pass  # it has ended

    def _sample(self, pid):
        total, counts = 0, True
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
            for line in smaps:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) if counts else 0
                elif re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
                    counts = not any(name in line for name in self.RAM)
        return total


# --- what has to be made first ---

def cpio(files):
    """An initial RAM disk (newc format): name -> (mode, bytes)."""
    out = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def prepare():
    """The guest program, its initial RAM disk, the kernel."""
    subprocess.run(["make", "-s", "-C", ROOT, "build/bench/bench"], check=True)
    subprocess.run([ROOT / "tools" / "guest-kernels", CACHE / "kernels", "cloud"], check=True)
    folders = {name: (0o040755, b"") for name in ("proc", "dev", "tmp")}
    init = {"init": (0o100755, (WORK / "bench").read_bytes())}
    (WORK / "initrd").write_bytes(cpio({**folders, **init}))


PACKAGES = "zstd,gzip,python3,openssl,sqlite3,findutils"


def prepare_image():
    """The Debian image of the whole programs, and the second disk with what they work on."""
    subprocess.run([ROOT / "tools" / "guest-image", IMAGE, "4G", PACKAGES], check=True)
    tree = WORK / "payload"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    here = pathlib.Path(__file__).parent / "guest"
    for source in (here / "jobs", here / "loop.py", WORK / "bench"):
        shutil.copy(source, tree)
    unit = subprocess.run(["gcc", "-E", "-P", "-std=gnu11", "-D_GNU_SOURCE", "-I", ROOT / "src", ROOT / "src/cpu/soft/block.c"],
                          stdout=subprocess.PIPE, check=True).stdout
    (tree / "unit.i").write_bytes(unit)
    inserts = [f"INSERT INTO t VALUES ({i}, 'name {i * 7919 % 10007}', {i * 31 % 1000});" for i in range(10000)]
    (tree / "inserts.sql").write_text("\n".join(
        ["CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, n INTEGER);", "CREATE INDEX names ON t (name);", "BEGIN;",
         *inserts, "COMMIT;", "SELECT count(*), sum(n) FROM t WHERE name < 'name 5';", ""]))
    with open(tree / "data", "wb") as data:  # for zstd: real, of a known size
        data.write(compiler()[:16 << 20])
    disk = WORK / "payload.raw"
    disk.unlink(missing_ok=True)
    subprocess.run(["truncate", "-s", "64M", disk], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk], check=True)
    shutil.copytree(tree, IMAGE / "root" / "mnt", dirs_exist_ok=True)


def compiler():
    return next((IMAGE / "root/usr/lib/gcc").rglob("cc1")).read_bytes()
