"""A real process that plays an engine with bad manners. Standard library only, so that it starts fast."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main(port: int, *flags: str) -> None:
    if "--exit" in flags:
        print("loading the model")
        print("my token is", os.environ.get("ACME_TOKEN"))
        sys.exit(3)
    if "--deaf" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--workers" in flags:
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleep)
        subprocess.Popen(sleep, start_new_session=True)
    if "--chatty" in flags:
        for _ in range(20_000):
            print("x" * 1000)
    if "--silent" in flags:
        time.sleep(600)
    if "--model" in flags:
        print("model", flags[flags.index("--model") + 1], flush=True)
    HTTPServer(("127.0.0.1", port), Health).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
