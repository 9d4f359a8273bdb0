"""What infra/bench/s3 measures. Standard library alone; requests to S3 are signed by hand, without a digest of the body, so
that the generator costs as little as it can."""

import argparse
import datetime
import hashlib
import hmac
import http.client
import json
import multiprocessing
import os
import pathlib
import queue
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

BUCKET = "waxwing"
ACCESS, SECRET, REGION = "waxwing", "waxwing-secret", "us-east-1"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART_BYTES = 8 * MIB
# Phones at once, each with an account of its own, and what each sends.
LANES, SMALL_BYTES, SMALL_BLOBS = 64, 100 * KIB, 2560
RANGES = 200
IDLE, IDLE_SENDS, BUSY_BYTES = 1000, 64 * KIB, 32 * MIB
# AWS's published prices for S3 Standard in us-east-1, in dollars a request. DELETE is free.
PRICE_WRITE, PRICE_READ = 0.005 / 1000, 0.0004 / 1000
WRITES, READS = ("put", "part", "multipart", "list"), ("get", "head")


def say(metric, unit, who, values, value=None):
    value = statistics.median(values) if value is None else value
    line = {"bench": "s3", "metric": metric, "value": round(value, 3), "unit": unit, "who": who,
            "n": len(values), "min": round(min(values), 3), "max": round(max(values), 3)}
    print(json.dumps(line), flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def signed(method, host, path, headers):
    """The headers of a request to S3 (Signature Version 4)."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {**headers, "host": host, "x-amz-date": now, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    names = sorted(headers)
    lines = "".join(f"{name}:{headers[name]}\n" for name in names)
    canonical = f"{method}\n{path}\n\n{lines}\n{';'.join(names)}\nUNSIGNED-PAYLOAD"
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + SECRET).encode()
    for part in (now[:8], REGION, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={';'.join(names)}, "
                                f"Signature={signature}")
    return headers


class Node:
    """A waxwing of its own process."""

    def __init__(self, waxwing, directory, roles, extra):
        directory.mkdir()
        self.address, self.admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        config = directory / "node.toml"
        config.write_text(f'roles = {json.dumps(roles)}\nlisten = "{self.address}"\nadmin_listen = "{self.admin}"\n'
                          f'data = "{directory / "data"}"\n{extra}')
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        deadline = time.time() + 120
        while True:
            self.process = subprocess.Popen([waxwing, "serve", "--config", config], stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, text=True, env={**os.environ, **keys})
            if self.process.stdout.readline().startswith("listening"):
                break
            said = self.process.communicate()[1]
            # The gateway answers before it can store.
            if "cannot use bucket" not in said or time.time() > deadline:
                sys.exit(said)
            time.sleep(0.5)
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()

    def status_bytes(self, field):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) * KIB

    def cpu_s(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def requests(self):
        """Requests to S3 so far, by what they are."""
        page = urllib.request.urlopen(f"http://{self.admin}/metrics").read().decode()
        return {op: int(float(n)) for op, n in re.findall(r'waxwing_s3_requests_total\{op="(\w+)"\} (\S+)', page)}


class Bench:
    def __init__(self, args):
        self.args, self.dir = args, pathlib.Path(args.dir)
        self.rounds = args.rounds
        weed = pathlib.Path(args.seaweedfs)
        while not (weed / "endpoint").exists():
            time.sleep(0.1)
        self.endpoint = (weed / "endpoint").read_text().strip()
        self.s3 = self.endpoint.removeprefix("http://")
        filer = (weed / "filer").read_text().strip()
        self.keep_alive(weed)
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{filer}/buckets/{BUCKET}/", method="POST"))
                break
            except OSError:
                time.sleep(0.2)
        waxwing = os.path.realpath(args.waxwing)
        self.waxwing = waxwing
        origin_at = f"127.0.0.1:{free_port()}"
        self.messaging = Node(waxwing, self.dir / "messaging", ["messaging"],
                              f'[cluster]\nuploads_base_url = "http://{origin_at}"\nblobs_base_url = "http://{origin_at}"\n'
                              '[messaging]\nregistration = "open"\n')
        jwks = urllib.request.urlopen(f"http://{self.messaging.address}/.well-known/jwks.json").read()
        (self.dir / "jwks.json").write_bytes(jwks)
        self.origin = Node(waxwing, self.dir / "origin", ["origin"],
                           f'[cluster]\njwks_file = "{self.dir / "jwks.json"}"\n[blobs.s3]\nendpoint = "{self.endpoint}"\n'
                           f'bucket = "{BUCKET}"\n')
        self.accounts = 0
        self.count = 0

    @staticmethod
    def keep_alive(weed):
        def touch():
            while True:
                (weed / "used").touch()
                time.sleep(20)
        threading.Thread(target=touch, daemon=True).start()

    def run(self, *args):
        return subprocess.run([self.waxwing, *args], cwd=self.dir, check=True, capture_output=True, text=True).stdout.strip()

    def grant(self):
        """An upload grant of a new account."""
        self.accounts += 1
        name = f"bench{self.accounts}"
        self.run("register", "--handle", name, "--home", name, "--server", f"http://{self.messaging.address}")
        return self.run("grant", "upload", "--home", name)

    def edge_grant(self):
        return self.run("admin", "grant", "edge", "--node", "bench", "--data", str(self.dir / "messaging" / "data"))

    def fresh(self):
        """Sixteen bytes that no blob began with."""
        self.count += 1
        return f"{os.getpid():08x}{self.count:08x}".encode()

    # A file of 1 GiB, through the origin and straight.

    def large(self):
        path = self.dir / "large.bin"
        block = os.urandom(64 * MIB)
        with open(path, "wb") as file:
            for _ in range(GIB // len(block)):
                file.write(block)
        config = self.dir / "aws.ini"
        config.write_text(f"[default]\nregion = {REGION}\ns3 =\n  multipart_threshold = {PART_BYTES}\n"
                          f"  multipart_chunksize = {PART_BYTES}\n")
        env = {**os.environ, "AWS_CONFIG_FILE": str(config), "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        grant = self.grant()
        ours, theirs, cpu = [], [], []

        def through():
            with open(path, "r+b") as file:
                file.write(self.fresh())
            before, began = self.origin.cpu_s(), time.time()
            url = self.create(grant, GIB)
            answer = subprocess.run(
                ["curl", "-sS", "--fail", "-T", path, "-X", "PATCH", "-H", f"Authorization: Bearer {grant}", "-H",
                 "Tus-Resumable: 1.0.0", "-H", "Upload-Offset: 0", "-H", "Content-Type: application/offset+octet-stream",
                 "-H", "Expect:", "-D", "-", "-o", "/dev/null", url], check=True, capture_output=True, text=True).stdout
            ours.append(GIB / 1e6 / (time.time() - began))
            cpu.append(self.origin.cpu_s() - before)
            blob = re.search(r"(?i)waxwing-blob: (\S+)", answer)[1]
            self.let_go(grant, blob)

        def straight():
            began = time.time()
            target = f"s3://{BUCKET}/direct/large"
            subprocess.run([self.args.aws, "--endpoint-url", self.endpoint, "s3", "cp", "--quiet", path, target],
                           check=True, env=env)
            theirs.append(GIB / 1e6 / (time.time() - began))
            subprocess.run([self.args.aws, "--endpoint-url", self.endpoint, "s3", "rm", "--quiet", target],
                           check=True, env=env)

        for turn in range(self.rounds):
            for measure in (through, straight) if turn % 2 == 0 else (straight, through):
                os.sync()
                measure()
        say("mb_per_s_1gib", "MB/s", "waxwing", ours)
        say("mb_per_s_1gib", "MB/s", "aws-s3-cp", theirs)
        say("share_of_aws_s3_cp", "1", "waxwing", [one / other for one, other in zip(ours, theirs)],
            statistics.median(ours) / statistics.median(theirs))
        say("cpu_s_per_gib", "s", "waxwing", cpu)
        path.unlink()

    def create(self, grant, length):
        connection = http.client.HTTPConnection(self.origin.address)
        connection.request("POST", "/v1/uploads", headers={
            "authorization": f"Bearer {grant}", "tus-resumable": "1.0.0", "upload-length": str(length)})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 201, answer.status
        return answer.headers["location"]

    def let_go(self, grant, blob):
        connection = http.client.HTTPConnection(self.origin.address)
        connection.request("DELETE", f"/v1/blobs/{blob}/keep", headers={"authorization": f"Bearer {grant}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status < 300, answer.status

    # Small blobs, many at once.

    def small(self):
        grants = [self.grant() for _ in range(LANES)]
        ours, theirs = [], []
        for turn in range(self.rounds):
            kinds = [("origin", ours), ("s3", theirs)]
            for kind, rates in kinds if turn % 2 == 0 else reversed(kinds):
                os.sync()
                rates.append(SMALL_BLOBS / self.lanes(kind, grants, turn))
        say("blobs_per_s_100k_64_at_once", "1/s", "waxwing", ours)
        say("blobs_per_s_100k_64_at_once", "1/s", "direct-put", theirs)

    def lanes(self, kind, grants, turn):
        """Seconds that all lanes take, in two processes of many threads."""
        halves = [grants[0::2], grants[1::2]]
        start, done = multiprocessing.Event(), multiprocessing.Queue()
        address = self.origin.address if kind == "origin" else self.s3
        workers = [multiprocessing.Process(target=send_small, args=(kind, address, half, f"{turn}-{n}", start, done))
                   for n, half in enumerate(halves)]
        for worker in workers:
            worker.start()
        for _ in workers:
            assert done.get() == "ready"
        began = time.time()
        start.set()
        for _ in workers:
            said = done.get()
            assert said == "done", said
        took = time.time() - began
        for worker in workers:
            worker.join()
        return took

    # A range of 1 MiB.

    def range(self):
        bytes_ = self.fresh() + os.urandom(64 * MIB - 16)
        grant, edge = self.grant(), self.edge_grant()
        blob = self.put(grant, bytes_)
        direct = http.client.HTTPConnection(self.s3)
        direct.request("PUT", f"/{BUCKET}/direct/range", bytes_,
                       signed("PUT", self.s3, f"/{BUCKET}/direct/range", {"content-length": str(len(bytes_))}))
        direct.getresponse().read()
        origin = http.client.HTTPConnection(self.origin.address)
        ours, theirs = [], []
        for turn in range(RANGES):
            asked = f"bytes={turn % 64 * MIB}-{turn % 64 * MIB + MIB - 1}"

            def through():
                origin.request("GET", f"/origin/v1/blobs/{blob}",
                               headers={"authorization": f"Bearer {edge}", "range": asked})
                return origin.getresponse()

            def straight():
                path = f"/{BUCKET}/direct/range"
                direct.request("GET", path, headers=signed("GET", self.s3, path, {"range": asked}))
                return direct.getresponse()

            pair = [(through, ours), (straight, theirs)]
            for ask, times in pair if turn % 2 == 0 else reversed(pair):
                began = time.time()
                answer = ask()
                got = answer.read()
                times.append((time.time() - began) * 1000)
                assert answer.status == 206 and len(got) == MIB, answer.status
        for who, times in (("waxwing", ours), ("direct-get", theirs)):
            say("range_1mib_p50_ms", "ms", who, times)
            say("range_1mib_p99_ms", "ms", who, times, sorted(times)[len(times) * 99 // 100])

    def put(self, grant, bytes_):
        connection = http.client.HTTPConnection(self.origin.address)
        connection.request("PUT", "/v1/blobs", bytes_, {"authorization": f"Bearer {grant}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status < 300, answer.status
        return answer.headers["waxwing-blob"]

    # Requests to S3 for each blob.

    def requests(self):
        grant, edge = self.grant(), self.edge_grant()

        def put(bytes_):
            return self.put(grant, bytes_)

        def tus(request_bytes):
            def send(bytes_):
                url = self.create(grant, len(bytes_))
                connection = http.client.HTTPConnection(self.origin.address)
                for at in range(0, len(bytes_), request_bytes):
                    connection.request("PATCH", url, bytes_[at:at + request_bytes], {
                        "authorization": f"Bearer {grant}", "tus-resumable": "1.0.0", "upload-offset": str(at),
                        "content-type": "application/offset+octet-stream"})
                    answer = connection.getresponse()
                    answer.read()
                    assert answer.status == 204, answer.status
                return answer.headers["waxwing-blob"]
            return send

        put(self.fresh())
        ways = [("put", put, (KIB, 100 * KIB, MIB, 8 * MIB)),
                ("tus_one_request", tus(GIB), (100 * KIB, MIB, 8 * MIB, 16 * MIB, 64 * MIB, GIB)),
                ("tus_8mib_requests", tus(8 * MIB), (16 * MIB, 64 * MIB, GIB))]
        for name, send, sizes in ways:
            for size in sizes:
                n = 1 if size == GIB else 5
                spent = []
                for _ in range(n):
                    bytes_ = self.fresh() + os.urandom(min(size, 64 * MIB) - 16)
                    bytes_ = bytes_ * (size // len(bytes_))
                    before = self.origin.requests()
                    blob = send(bytes_)
                    spent.append({op: n - before[op] for op, n in self.origin.requests().items()})
                    self.let_go(grant, blob)
                # Health checks and sweeps come between: what the fewest were is the blob's own.
                least = {op: min(one[op] for one in spent) for op in spent[0]}
                self.say_requests(f"{name}_{size // KIB}kib", least)
        blob = put(self.fresh() + os.urandom(4 * MIB))
        spent = []
        for _ in range(5):
            before = self.origin.requests()
            request = urllib.request.Request(f"http://{self.origin.address}/origin/v1/blobs/{blob}", headers={
                "authorization": f"Bearer {edge}", "range": f"bytes=0-{MIB - 1}"})
            urllib.request.urlopen(request).read()
            spent.append({op: n - before[op] for op, n in self.origin.requests().items()})
        self.say_requests("range_read", {op: min(one[op] for one in spent) for op in spent[0]})

    @staticmethod
    def say_requests(name, ops):
        for op, n in ops.items():
            if n:
                say(f"requests_{name}_{op}", "1", "waxwing", [n])
        writes, reads = (sum(ops.get(op, 0) for op in kinds) for kinds in (WRITES, READS))
        say(f"cost_per_million_{name}", "USD", "waxwing", [1e6 * (writes * PRICE_WRITE + reads * PRICE_READ)])

    # Memory of the origin.

    def memory(self):
        grant = self.grant()
        say("rss_bytes_started", "B", "waxwing", [self.origin.status_bytes("VmRSS")])
        host, port = self.origin.address.split(":")
        stalled = []
        for _ in range(IDLE):
            path = "/" + self.create(grant, MIB).split("/", 3)[3]
            connection = socket.create_connection((host, int(port)))
            connection.sendall((f"PATCH {path} HTTP/1.1\r\nHost: {self.origin.address}\r\nAuthorization: Bearer {grant}\r\n"
                                "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream\r\n"
                                f"Content-Length: {MIB}\r\n\r\n").encode() + bytes(IDLE_SENDS))
            stalled.append(connection)
        # A stall is committed after a second; then nothing of it is in memory but the request.
        time.sleep(3)
        say("rss_bytes_1000_idle", "B", "waxwing", [self.origin.status_bytes("VmRSS")])
        grants = [self.grant() for _ in range(LANES)]
        failures = queue.Queue()

        def busy(grant, lane):
            try:
                self.put(grant, self.fresh() + bytes([lane]) * (BUSY_BYTES - 16))
            except Exception as error:  # told to the thread that waits
                failures.put(error)

        threads = [threading.Thread(target=busy, args=(grant, lane)) for lane, grant in enumerate(grants)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures.empty(), failures.get()
        say("peak_bytes_1000_idle_64_busy", "B", "waxwing", [self.origin.status_bytes("VmHWM")])
        for connection in stalled:
            connection.close()

    def stop(self):
        for node in (self.origin, self.messaging):
            node.process.terminate()
            node.process.wait()


def send_small(kind, address, grants, name, start, done):
    """One process's lanes: a connection each, one blob after the other."""
    blobs = SMALL_BLOBS // LANES
    failures = []

    def lane(n, grant):
        try:
            connection = http.client.HTTPConnection(address)
            connection.connect()
            body = bytearray(SMALL_BYTES)
            start.wait()
            for turn in range(blobs):
                label = f"{name}-{n}-{turn}".encode()
                body[:len(label)] = label
                if kind == "origin":
                    connection.request("PUT", "/v1/blobs", body, {"authorization": f"Bearer {grant}"})
                else:
                    path = f"/{BUCKET}/direct/{label.decode()}"
                    headers = signed("PUT", address, path, {"content-length": str(len(body))})
                    connection.request("PUT", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status >= 300:
                    failures.append(answer.status)
                    return
        except Exception as error:  # told to the process that waits
            failures.append(repr(error))

    threads = [threading.Thread(target=lane, args=lane_of) for lane_of in enumerate(grants)]
    for thread in threads:
        thread.start()
    done.put("ready")
    for thread in threads:
        thread.join()
    done.put("done" if not failures else f"failed: {failures[0]}")


def main():
    parts = ("large", "small", "range", "requests", "memory")
    parser = argparse.ArgumentParser()
    for name in ("waxwing", "aws", "seaweedfs", "dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    args = parser.parse_args()
    bench = Bench(args)
    try:
        for part in args.parts or parts:
            getattr(bench, part)()
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
