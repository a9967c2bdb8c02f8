"""A web server with pictures, which can be slow or dead."""

import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PictureHost:
    """Serves `/<name>` on loopback, after `delay_s`; while `dead`, it hangs up without a word."""

    def __init__(self, pictures: Mapping[str, bytes]) -> None:
        self.delay_s = 0.0
        self.dead = False
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(host.delay_s)
                if host.dead:
                    self.close_connection = True
                    return
                body = pictures[self.path.removeprefix("/")]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Whoever asked has lost patience."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> "PictureHost":
        threading.Thread(target=self._server.serve_forever, name="host", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
