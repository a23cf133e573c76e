"""An HTTP app on Python's own http.server: app.py PORT [1.0|1.1]. Says what it got, and misbehaves where it is asked to."""

import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BLOCK = hashlib.sha512(b"noise").digest() * 1024  # 64 KiB


def noise(length):
    """The first `length` bytes of a fixed stream, in blocks that differ."""
    number = 0
    while length > 0:
        block = (number.to_bytes(8, "big") + BLOCK[8:])[:length]
        yield block
        length -= len(block)
        number += 1


class Handler(BaseHTTPRequestHandler):
    def body(self):
        """Reads the request's body to its end: (bytes, SHA-256, trailers)."""
        digest, length = hashlib.sha256(), 0
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                if size == 0:
                    break
                data = self.rfile.read(size)
                assert len(data) == size and self.rfile.readline() == b"\r\n"
                digest.update(data)
                length += size
            trailers = {}
            while (line := self.rfile.readline().strip()) != b"":
                name, value = line.decode().split(":", 1)
                trailers[name.lower()] = value.strip()
            return length, digest.hexdigest(), trailers
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            data = self.rfile.read(min(left, 65536))
            if not data:
                raise ConnectionError("the body broke off")
            digest.update(data)
            length += len(data)
            left -= len(data)
        return length, digest.hexdigest(), {}

    def answer(self, data, status=200, **headers):
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def handle_expect_100(self):
        if self.path == "/refuse":
            self.answer(b"not so large\n", 413, connection="close")
            self.close_connection = True
            return False
        return super().handle_expect_100()

    def do_any(self):
        target = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(target.query).items()}
        what = target.path.strip("/").split("/")
        length, digest, trailers = self.body()
        if what[0] == "seen":
            seen = {
                "method": self.command,
                "target": self.path,
                "version": self.request_version,
                "headers": [[n.lower(), v] for n, v in self.headers.items()],
                "length": length,
                "sha256": digest,
                "trailers": trailers,
                "connection": self.client_address[1],
            }
            self.answer(json.dumps(seen).encode() + b"\n", content_type="application/json")
        elif what[0] == "status":
            status = int(what[1])
            if status in (204, 304):
                self.send_response(status)
                self.send_header("etag", '"a"')
                self.end_headers()
            else:
                self.answer(b"status\n", status)
        elif what[0] == "bytes":
            self.send_response(200)
            self.send_header("content-length", what[1])
            self.end_headers()
            if self.command != "HEAD":
                for block in noise(int(what[1])):
                    self.wfile.write(block)
        elif what[0] == "chunked":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.send_header("trailer", "x-sha256")
            self.end_headers()
            digest = hashlib.sha256()
            for block in noise(int(what[1])):
                digest.update(block)
                self.chunk(block)
            self.wfile.write(b"0\r\nx-sha256: %s\r\n\r\n" % digest.hexdigest().encode())
        elif what[0] == "die":  # /die/FRAMING/BYTES: in the midst of an answer
            self.close_connection = True
            self.send_response(200)
            if what[1] == "length":
                self.send_header("content-length", "1000000")
            elif what[1] == "chunked":
                self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for block in noise(int(what[2])):
                self.chunk(block) if what[1] == "chunked" else self.wfile.write(block)
            self.wfile.flush()
            if what[1] == "reset":
                import socket
                import struct

                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        elif what[0] == "mute":  # closes without an answer
            self.close_connection = True
        elif what[0] == "drip":  # an event every tenth of a second, each at once
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for number in range(int(what[1])):
                self.chunk(b"data: %d\n\n" % number)
                self.wfile.flush()
                time.sleep(0.1)
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.answer(b"hello from python\n", **({"x_said": query["say"]} if "say" in query else {}))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_any

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    Handler.protocol_version = "HTTP/" + (sys.argv[2] if len(sys.argv) > 2 else "1.1")
    # Buffered, so that head and body go in one packet: http.server alone waits 40 ms between them.
    Handler.wbufsize = -1
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
