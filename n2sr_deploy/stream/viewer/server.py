"""Serves the viewer's page and the frames it asks for, at the rate at which it asks.

    GET  /                     the page
    GET  /frame?after=N&top=..&left=..&height=..&width=..&side=..
                               the first frame after number N: a part of it, reduced to about `side`
                               pixels by means over blocks
    POST /freeze?on=1          keep what is shown; 0: go on
    POST /save                 what is shown, as a ZIP of TIFF files and all metadata

What answers look like, `n2sr_deploy.stream.viewer.answers` says.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import sys
import threading
import time
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from n2sr_deploy.errors import N2SRError, SettingError
from n2sr_deploy.stream.viewer.answers import Shown, number_of, packed, zipped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from n2sr_deploy.stream.base import LiveResult

_log = logging.getLogger("n2sr")
_PAGE = Path(__file__).with_name("page.html")
_LOCAL = "127.0.0.1"
_LONGEST_WAIT_S = 2.0
_COPIES_EVERY_S = 0.5  # where nobody asks: for somebody who will
_JSON = "application/json"
_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"


class ViewerSink:
    """A sink that shows what it gets in a browser.

    Parameters
    ----------
    port
        Of the page; 0: any that is free.
    host
        Where to listen; anything but this machine needs a token.
    token
        What a browser of another machine must give; without one a new one is made up where `host`
        is not this machine.
    told
        Gives what is shown beside the frames: fps, counts, latencies.

    Raises
    ------
    SettingError
        When the port cannot be had.
    """

    name = "the viewer"

    def __init__(
        self,
        port: int = 0,
        host: str = _LOCAL,
        token: str | None = None,
        told: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._token = token or (None if host == _LOCAL else secrets.token_urlsafe(16))
        self.told = told
        self._changed = threading.Condition()
        self._shown: Shown | None = None
        self._n_results = 0
        self._n_waiting = 0
        self.is_frozen = False
        self.run_id = secrets.token_hex(4)
        self._host = host
        self._server: _Server | None = self._listening(port)
        self._port = self._server.server_address[1]
        self._thread: threading.Thread | None = None

    def _listening(self, port: int) -> _Server:
        try:
            return _Server((self._host, port), self)
        except OSError as error:
            raise SettingError(
                f"the viewer cannot listen on {self._host}:{port} ({error}); is the "
                "address this machine's, and the port free? See --listen and --view-port"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        query = f"/?token={self._token}" if self._token else "/"
        host = socket.gethostname() if self._host in ("0.0.0.0", "::") else self._host
        return f"http://{host}:{self._port}{query}"

    def open(self) -> None:
        """Serve, on the same port as before."""
        if self._thread is None:
            self._server = self._server or self._listening(self._port)
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.1,), name="n2sr viewer", daemon=True
            )
            self._thread.start()

    def write(self, result: LiveResult) -> None:
        """Copy a frame if somebody waits for it, or nobody has had one for a while."""
        with self._changed:
            self._n_results += 1
            if self.is_frozen:
                return
            now = time.monotonic()
            is_old = self._shown is None or now - self._shown.copied_s > _COPIES_EVERY_S
            if self._n_waiting or is_old:
                self._shown = Shown(self._n_results, _copied(result), now)
                self._changed.notify_all()

    def close(self) -> None:
        """Serve no more."""
        thread, self._thread = self._thread, None
        server, self._server = self._server, None
        if server is None:
            return
        if thread is not None:
            server.shutdown()
            thread.join()
        server.server_close()

    # for the requests' threads

    def is_let_in(self, host: str, token: str) -> bool:
        """Whether a request may be answered.

        One for another name than this machine's comes from a page elsewhere (DNS rebinding).
        """
        if self._token is not None:
            return hmac.compare_digest(token.encode(), self._token.encode())
        return host.partition(":")[0] in (_LOCAL, "localhost")

    def shown_after(self, number: int) -> Shown | None:
        """A frame after this number, within two seconds; None when none comes."""
        with self._changed:
            self._n_waiting += 1
            try:
                self._changed.wait_for(
                    lambda: self._shown is not None and self._shown.number > number,
                    _LONGEST_WAIT_S,
                )
            finally:
                self._n_waiting -= 1
            shown = self._shown
            return shown if shown is not None and shown.number > number else None

    @property
    def shown(self) -> Shown | None:
        """What was shown last."""
        with self._changed:
            return self._shown

    def all_told(self) -> dict[str, Any]:
        """What is shown beside the frames, and what the page must know of the server."""
        return {**self.told(), "run": self.run_id, "frozen": self.is_frozen}

    def freeze(self, on: bool) -> None:
        """Keep what is shown, or go on."""
        with self._changed:
            self.is_frozen = on


def _copied(result: LiveResult) -> LiveResult:
    std = None if result.std is None else result.std.copy()
    noisy = replace(result.noisy, pixels=result.noisy.pixels.copy())
    return replace(result, noisy=noisy, mean=result.mean.copy(), std=std)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # where two programs then have one port

    def __init__(self, address: tuple[str, int], viewer: ViewerSink) -> None:
        self.viewer = viewer
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that is closed amid an answer is no error."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            _log.warning("the viewer failed on a request: %r", error)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request of a browser."""

    protocol_version = "HTTP/1.1"
    timeout = 30.0
    server: _Server

    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    def _is_let_in(self) -> bool:
        host = self.headers.get("Host", "")
        if self.server.viewer.is_let_in(host, self._query().get("token", "")):
            return True
        self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this viewer needs its token\n")
        return False

    def do_GET(self) -> None:
        """The page, or a frame."""
        path = urlsplit(self.path).path
        if not self._is_let_in():
            return
        if path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.read_bytes())
        elif path == "/frame":
            self._answer_frame()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    def _answer_frame(self) -> None:
        viewer, query = self.server.viewer, self._query()
        shown = viewer.shown_after(number_of(query, "after"))
        if shown is None and "again" in query:
            shown = viewer.shown
        if shown is None:
            told = json.dumps({"told": viewer.all_told()}, default=str).encode()
            self._answer(HTTPStatus.ACCEPTED, _JSON, told)
        else:
            body = packed(shown, query, viewer.all_told())
            self._answer(HTTPStatus.OK, "application/octet-stream", body)

    def do_POST(self) -> None:
        """Freeze or save."""
        path, viewer = urlsplit(self.path).path, self.server.viewer
        self.close_connection = True  # no body is read
        origin = self.headers.get("Origin")
        if not self._is_let_in():
            return
        if origin is not None and origin != f"http://{self.headers.get('Host')}":
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this is another page's request\n")
            return
        if path == "/freeze":
            viewer.freeze(self._query().get("on") == "1")
            self._answer(HTTPStatus.OK, _JSON, b"{}")
        elif path == "/save" and viewer.shown is not None:
            self._answer_save(viewer.shown.result)
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page\n")

    def _answer_save(self, result: LiveResult) -> None:
        try:
            body = zipped(result)
        except N2SRError as error:
            self._answer(HTTPStatus.CONFLICT, "text/plain", str(error).encode())
        else:
            # The page may show an older frame than the one that is saved.
            name = {"Content-Disposition": f'attachment; filename="n2sr-{result.noisy.index}.zip"'}
            self._answer(HTTPStatus.OK, "application/zip", body, name)

    def _answer(
        self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None
    ) -> None:
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": _POLICY,
                **(more or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the page was closed

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing on the terminal."""
        _log.debug("viewer: %s", format % arguments)
