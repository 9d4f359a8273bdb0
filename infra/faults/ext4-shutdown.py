#!/usr/bin/env python3
"""Does ext4 tell the truth about fdatasync while it is being shut down?

The harness cuts power by EXT4_IOC_SHUTDOWN. A process that runs on while its file system goes can be told by fdatasync
that bytes are durable which are then lost; a real power cut gives it no time to pass that on. So the harness stops the
server before it cuts. This shows that the stop is needed, and that it is enough.

    sudo infra/faults/ext4-shutdown.py [ROUNDS]

Six threads append to files, sync, and note outside what they were told was durable. Each round shuts the file system
down amid that, mounts it again and compares; first with the writer running, then with the writer stopped.
"""

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
WRITERS, FILE_BYTES = 6, 64 << 20
NOTE = struct.Struct("<QQQ")


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def entry(number, size):
    return struct.pack("<QQ", number, size) + bytes([number & 255]) * (size - 16)


def write(mount, notes, writer):
    file = os.open(f"{mount}/{writer}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(file, FILE_BYTES)
    os.fsync(file)
    os.fsync(os.open(mount, os.O_RDONLY))
    note = os.open(f"{notes}/{writer}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    at = number = 0
    while at < FILE_BYTES - 70_000:
        number, size = number + 1, random.choice([200, 5_000, 70_000])
        try:
            os.pwrite(file, entry(number, size), at)
            os.fdatasync(file)
        except OSError:
            return
        os.write(note, NOTE.pack(number, at, size))
        at += size


def cut(mount, notes, stop):
    """Cuts the power amid writing."""
    child = os.fork()
    if child == 0:
        threads = [threading.Thread(target=write, args=(mount, notes, n)) for n in range(WRITERS)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(0)
    time.sleep(random.uniform(0.3, 0.8))
    if stop:
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
    directory = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(directory, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(directory)
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def compare(mount, notes):
    """How many entries were told to be durable, and how many of those are not there."""
    told = lost = 0
    for writer in range(WRITERS):
        with open(f"{notes}/{writer}", "rb") as file:
            noted = file.read()
        with open(f"{mount}/{writer}", "rb") as file:
            found = file.read()
        for number, at, size in NOTE.iter_unpack(noted):
            told += 1
            lost += found[at : at + size] != entry(number, size)
    return told, lost


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as directory:
        image, mount, notes = (f"{directory}/{name}" for name in ("image", "mount", "notes"))
        os.mkdir(mount)
        os.mkdir(notes)
        with open(image, "wb") as file:
            file.truncate(2 << 30)
        run("mkfs.ext4", "-q", image)
        for stop in (False, True):
            told = lost = 0
            for _ in range(rounds):
                run("mount", "-o", "loop", image, mount)
                cut(mount, notes, stop)
                run("umount", mount)
                run("mount", "-o", "loop", image, mount)
                more = compare(mount, notes)
                told, lost = told + more[0], lost + more[1]
                run("umount", mount)
            state = "stopped before" if stop else "running through"
            print(f"writer {state} the cut: {rounds} rounds, {told} acknowledged by fdatasync, {lost} lost")


main()
