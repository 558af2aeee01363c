#!/usr/bin/python3
"""A long series of downloads and uploads over the user network: usage: downloads.py [--count N] [--cpus N] ...

Each turn fetches a blob from a server on the host's loopback, checks its sum, and sends it back. A turn that does not
end within --patience seconds is a hang: the machine is left running and its process id said, for a debugger.
"""
import argparse
import hashlib
import http.server
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "system")]
from conftest import Initramfs  # noqa: E402
from test_net import LEASE, MODULES, UP  # noqa: E402

SCRIPT = """
i=0
while [ $i -lt {count} ]; do
    wget -q -O /tmp/blob http://10.0.2.2:{port}/$i && sum=$(sha256sum < /tmp/blob | cut -c 1-16)
    wget -q -O - --post-file=/tmp/blob http://10.0.2.2:{port}/$i > /tmp/answer
    echo "TURN $i $sum $(cat /tmp/answer)"
    i=$((i + 1))
done
"""


class Handler(http.server.BaseHTTPRequestHandler):
    blob = b""

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(self.blob)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(hashlib.sha256(body).hexdigest()[:16].encode())

    def log_message(self, *args):
        pass


def start(options, port, folder):
    lease = pathlib.Path(folder) / "lease"
    lease.write_text(LEASE)
    lease.chmod(0o755)
    kernel = ROOT / "build" / "guest" / "kernels" / "cloud"
    initrd = Initramfs(pathlib.Path(folder)).build(UP + SCRIPT.format(count=options.count, port=port), MODULES, kernel,
                                                   files=[(lease, "/etc/lease")])
    return subprocess.Popen([options.lodge, "run", "--engine", options.engine, "--kernel", kernel / "vmlinux", "--initrd",
                             initrd, "--cpus", str(options.cpus), "--memory", "256M", "--append",
                             "console=ttyS0 quiet panic=-1"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors="replace")


def lines_of(machine):
    lines = queue.Queue()

    def pump():
        for line in machine.stdout:
            lines.put(line.strip())
        lines.put(None)
    threading.Thread(target=pump, daemon=True).start()
    return lines


def follow(machine, options, sum16):
    """The turns that held, and the longest of them in seconds."""
    lines, done, longest = lines_of(machine), 0, 0.0
    began = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=options.patience)
        except queue.Empty:
            print(f"downloads: nothing for {options.patience} s after {done} turns; left running: pid {machine.pid}")
            os._exit(1)
        if line is None:
            return done, longest
        if not line.startswith("TURN "):
            continue
        if line != f"TURN {done} {sum16} {sum16}":
            sys.exit(f"downloads: wrong bytes: {line!r}, expected {sum16}")
        if done:
            longest = max(longest, time.monotonic() - began)
        began = time.monotonic()
        done += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--bytes", type=int, default=3 << 20)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--engine", default="soft")
    parser.add_argument("--patience", type=int, default=120)
    parser.add_argument("--lodge", default=ROOT / "build" / "lodge")
    options = parser.parse_args()
    Handler.blob = os.urandom(options.bytes // 2).hex().encode()  # text: what busybox can post
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        machine = start(options, server.server_address[1], folder)
        done, longest = follow(machine, options, hashlib.sha256(Handler.blob).hexdigest()[:16])
    print(f"downloads: {done} of {options.count} turns held, the longest took {longest:.1f} s; status {machine.wait()}")
    return 0 if done == options.count and machine.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
