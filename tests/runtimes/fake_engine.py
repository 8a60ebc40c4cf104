"""A real process in the place of an engine: it writes down how it was started, and answers where its last `--port` says.

Standard library only, so that it starts fast. It is healthy at one path only: FAKE_HEALTH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == os.environ["FAKE_HEALTH"] else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main() -> None:
    # As the argument parsers of the real ones: the last of two equal flags counts.
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    where, _ = parser.parse_known_args()
    Path(os.environ["FAKE_RECORD"]).write_text(json.dumps(sys.argv))
    HTTPServer((where.host, where.port), Health).serve_forever()


if __name__ == "__main__":
    main()
