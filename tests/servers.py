"""A server on this machine that answers as servers do, well and badly."""

import contextlib
import http.server
import time

CONTENT = bytes(range(256)) * 1024  # 256 KiB: four chunks


class Server(http.server.ThreadingHTTPServer):
    """Serves `answers`: path -> options of `Handler.do_GET`; `requests` are (path, Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {}
        self.requests = []

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def ranges(self, path):
        return [given for asked, given in self.requests if asked == path]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Range")
        self.server.requests.append((self.path, given))
        with contextlib.suppress(OSError):  # the other side may leave, which is its right
            self.answer(given, **self.server.answers.get(self.path, {"status": 404}))

    def answer(
        self,
        given,
        *,
        status=200,
        body=CONTENT,
        ranges=True,
        cut=None,
        length=True,
        shift=0,
        delay=0.0,
        drip=None,
        location=None,
    ):
        start = int(given.removeprefix("bytes=").removesuffix("-")) if given and ranges else 0
        if start and start >= len(body):
            status, rest = 416, b""
        elif start:
            status, rest = 206, body[start + shift :]
        else:
            rest = body
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start + shift}-{len(body) - 1}/{len(body)}")
        if length:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        time.sleep(delay)
        while drip is not None:  # a byte at a time, without end
            self.wfile.write(rest[:1])
            time.sleep(drip)
        self.wfile.write(rest[: None if cut is None else max(cut - start, 0)])

    def do_CONNECT(self):
        self.server.requests.append((self.path, None))
        self.send_error(403, "Forbidden\x1b\tby policy")

    def log_message(self, *args):
        pass
