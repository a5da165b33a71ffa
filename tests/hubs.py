"""A stand-in for the Hugging Face Hub on the loopback interface: what its client asks for, and what goes wrong."""

import http.server
import json
import threading
from types import TracebackType

COMMIT = "0" * 40


class Hub:
    """Knows no repository, or two data sets of one file: `me/texts`, and `me/broken` whose connection breaks off."""

    def __init__(self, lines: str = "") -> None:
        self.content = lines.encode()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        where = self.path.partition("?")[0]
        name = next((name for name in ("me/texts", "me/broken") if f"/{name}" in where), None)
        if not self.hub.content or name is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif where.endswith("/train.jsonl"):
            self._file(breaks_after=None if name == "me/texts" else 5000)
        elif "/resolve/" in where:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif "/tree/" in where:
            listed = where.endswith(COMMIT)  # its root, and no folder below
            entry = {"type": "file", "path": "train.jsonl", "size": len(self.hub.content), "oid": "1" * 40}
            self._json([entry] if listed else [])
        else:
            self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": "train.jsonl"}], "tags": []})

    do_HEAD = do_GET

    def _file(self, breaks_after: int | None) -> None:
        content, headers, status = self.hub.content, {"ETag": '"1"', "X-Repo-Commit": COMMIT}, 200
        if asked := self.headers.get("Range"):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(content)}"
            content, status = content[int(begin) : last + 1], 206
        self._answer(status, content, headers, breaks_after)

    def _json(self, said: object) -> None:
        self._answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], breaks_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:breaks_after])
        self.close_connection = breaks_after is not None

    def log_message(self, *_: object) -> None:
        """Say nothing."""
