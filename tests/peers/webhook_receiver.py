"""Receives webhooks, checks them with the verifier of the Standard Webhooks project, and keeps a
journal.

    python webhook_receiver.py PORT

Every test uses a path of its own, for example `/hooks/6f1c`, so tests do not disturb each other.

    POST /secret               {"path": "/hooks/6f1c", "secrets": ["whsec_..."]}
    GET  /journal?path=/hooks/6f1c     what arrived at that path and below, oldest first
    GET  /health

The end of the path says how to answer; anything else is 200 with `ok`:

    .../status/500             that status
    .../slow/5                 200, after so many seconds
    .../fail-then-ok/2         503 the first two times, then 200
    .../gone-then-ok/2         410 the first two times, then 200
    .../busy-then-ok/3         503 with that Retry-After the first time, then 200
    .../retry-after/30         503 with that Retry-After
    .../big                    200 with a body of 1 MiB
    .../redirect               307 to `.../redirected`
    .../drop                   reads the request, then closes without an answer
"""

import base64
import json
import sys
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from standardwebhooks.webhooks import Webhook

BODY_BYTES_MAX = 10_000_000
SLOW_SECONDS_MAX = 120

lock = threading.Lock()
journal = deque(maxlen=10_000)
secrets = {}
attempts = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 150

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/health":
            self.answer(200, {"status": "ok"})
        elif url.path == "/journal":
            wanted = parse_qs(url.query).get("path", ["/"])[0]
            with lock:
                found = [entry for entry in journal if below(entry["path"], wanted)]
            self.answer(200, found)
        else:
            # A followed redirect arrives as the method that the client chose.
            self.receive(b"")

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self.close_connection = True
            self.answer(411, {"error": f"send a content-length of at most {BODY_BYTES_MAX}"})
            return
        body = self.rfile.read(int(length))
        if urlsplit(self.path).path == "/secret":
            self.set_secrets(body)
        else:
            self.receive(body)

    def set_secrets(self, body):
        request = json.loads(body)
        with lock:
            secrets[request["path"]] = request["secrets"]
        self.answer(200, {"status": "ok"})

    def receive(self, body):
        path = urlsplit(self.path).path
        verified, reason = verify(path, dict(self.headers.items()), body)
        entry = {
            "at": time.time(),
            "method": self.command,
            "path": path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode("utf-8", "replace"),
            "body_base64": base64.b64encode(body).decode("ascii"),
            "verified": verified,
            "reason": reason,
        }
        with lock:
            attempts[path] += 1
            attempt = attempts[path]
            journal.append(entry)
        self.act(path, attempt)

    def act(self, path, attempt):
        match path.rstrip("/").split("/"):
            case [*_, "status", code]:
                self.answer(int(code), {"status": "as asked"})
            case [*_, "slow", seconds]:
                time.sleep(min(float(seconds), SLOW_SECONDS_MAX))
                self.answer(200, {"status": "ok"})
            case [*_, "fail-then-ok", times]:
                self.answer(503 if attempt <= int(times) else 200, {"attempt": attempt})
            case [*_, "gone-then-ok", times]:
                self.answer(410 if attempt <= int(times) else 200, {"attempt": attempt})
            case [*_, "busy-then-ok", seconds] if attempt == 1:
                self.answer(503, {"status": "busy"}, {"retry-after": seconds})
            case [*_, "retry-after", seconds]:
                self.answer(503, {"status": "busy"}, {"retry-after": seconds})
            case [*_, "big"]:
                self.answer(200, "x" * 1_048_576)
            case [*rest, "redirect"]:
                self.answer(307, {}, {"location": "/".join([*rest, "redirected"])})
            case [*_, "drop"]:
                self.close_connection = True
            case _:
                self.answer(200, {"status": "ok"})

    def answer(self, status, content, headers=None):
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # A client that does not wait for a slow or a big answer is part of some tests.
            self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def below(path, wanted):
    wanted = wanted.rstrip("/")
    return path == wanted or path.startswith(wanted + "/")


def verify(path, headers, body):
    """Whether one of the path's secrets verifies: true, false, or null without a secret."""
    with lock:
        known = [keys for prefix, keys in secrets.items() if below(path, prefix)]
    reasons = []
    for secret in (secret for keys in known for secret in keys):
        try:
            Webhook(secret).verify(body, headers, json_parse=False)
            return True, None
        except Exception as error:
            reasons.append(f"{type(error).__name__}: {error}")
    return (False, "; ".join(reasons)) if known else (None, "no secret is set for this path")


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
