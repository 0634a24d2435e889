"""A server of Weights & Biases on this machine: as much as a run and `wandb sync` ask for, and its faults."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Mood = Literal["answers", "forbids", "unavailable", "silent"]
"""How requests are met: as they should be; with 401; with 503; not at all, though the connection stands."""

_ENTITY = {"id": "entity", "name": "somebody"}
_ANSWERS: dict[str, Any] = {
    "viewer": {
        "viewer": {
            **{"id": "user", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"},
            **{"teams": {"edges": []}, "admin": False, "defaultEntity": _ENTITY},
        },
        "serverInfo": None,
    },
    "serverInfo": {
        "serverInfo": {
            "cliVersionInfo": {"max_cli_version": "99.0.0"},
            "latestLocalVersionInfo": None,
            "features": [],
        }
    },
}
"""to queries that name one of these fields"""


class WandbServer:
    """Runs in threads of its own until it is closed; any number of them may run at once."""

    def __init__(self) -> None:
        """Listen on a port that is free."""
        self.mood: Mood = "answers"
        self.delay_seconds = 0.0
        """before every answer"""
        self.runs: dict[str, list[dict[str, Any]]] = {}
        """rows received, by the id of their run"""
        self.requests = 0
        self._closing = threading.Event()
        self._lock = threading.Lock()
        owner = self

        class Handler(_Handler):
            server_of_runs = owner

        self._http = _Http(("127.0.0.1", 0), Handler)
        self._address = self._http.server_address
        self._place = socket.socket()
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What `WANDB_BASE_URL` should be."""
        return f"http://127.0.0.1:{self._address[1]}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of all runs, one run after another."""
        with self._lock:
            return [row for rows in self.runs.values() for row in rows]

    def take(self, run: str, offset: int, lines: list[str]) -> None:
        """Rows of a run, from the one with this number."""
        with self._lock:
            rows = self.runs.setdefault(run, [])
            rows[offset:] = [json.loads(line) for line in lines]

    def wait(self, seconds: float) -> bool:
        """Wait so long; whether the server is gone."""
        return self._closing.wait(seconds)

    def refuse(self) -> None:
        """Be gone: connections are refused from here on, and those that wait for an answer end."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(self._address)  # so that no other server gets the port

    def close(self) -> None:
        """Be gone, and give the port back."""
        if not self._closing.is_set():
            self.refuse()
        self._place.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    """Its clients may be killed at any moment."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a connection that ends is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_of_runs: WandbServer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the tests look at what was received."""

    def do_GET(self) -> None:
        self._meet(lambda body: {})

    def do_PUT(self) -> None:
        self._meet(lambda body: {})

    def do_POST(self) -> None:
        if self.path.endswith("/file_stream"):
            self._meet(self._file_stream)
        elif self.path.endswith("/graphql"):
            self._meet(self._graphql)
        else:
            self._meet(lambda body: {})

    def _meet(self, answer: Callable[[bytes], dict[str, Any]]) -> None:
        server = self.server_of_runs
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests += 1
        if server.mood == "silent":
            server.wait(3600.0)
        if server.wait(server.delay_seconds):
            self.close_connection = True
            return
        code = {"answers": 200, "forbids": 401, "unavailable": 503}.get(server.mood, 200)
        content = json.dumps(answer(body) if code == 200 else {"error": server.mood}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file_stream(self, body: bytes) -> dict[str, Any]:
        history = (json.loads(body).get("files") or {}).get("wandb-history.jsonl")
        if history is not None:
            self.server_of_runs.take(self.path.split("/")[-2], history["offset"], history["content"])
        return {}

    def _graphql(self, body: bytes) -> dict[str, Any]:
        request = json.loads(body)
        query, variables = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "project", "name": variables.get("project"), "entity": _ENTITY}
            bucket = {
                **{"id": "bucket", "name": variables.get("name"), "displayName": variables.get("name")},
                **{"description": None, "config": "{}", "sweepName": None, "project": project},
                "historyLineCount": 0,
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            files = [
                {"name": name, "uploadUrl": f"{self.server_of_runs.url}/upload/{name}"}
                for name in variables.get("files") or []
            ]
            return {"data": {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}}
        for field, data in _ANSWERS.items():
            if field in query:
                return {"data": data}
        return {"data": {}, "errors": [{"message": "this server knows no such query"}]}
