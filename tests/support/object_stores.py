"""Servers of object storage on this machine, and what can be wrong with them.

moto speaks S3, in this process. A few lines in front of it speak the part of
Google's XML API that obstore uses. azurite speaks Azure's protocol, and s3rver is
an S3 that ignores conditions. Both are installed from npm once, and kept in the
user's cache.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import http.client
import io
import os
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# What is common knowledge of Azure's emulators.
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@dataclass
class Server:
    """A server that is running.

    Attributes:
        scheme: of the URLs that it is for.
        port: where it listens.
        keys: the credentials, of an S3.
        requests: how many there were of each method, and how many bytes they sent.
        before: called with the environment of each request; what it returns is answered
            instead, as a status and a body. None goes on.
        lose: called with the environment of each request that was served; True loses the
            answer.
    """

    scheme: str
    port: int = 0
    keys: dict[str, str] = field(
        default_factory=lambda: {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}
    )
    requests: dict[str, int] = field(default_factory=dict)
    sent: int = 0
    before: Callable[[dict[str, Any]], tuple[str, bytes] | None] = lambda environ: None
    lose: Callable[[dict[str, Any]], bool] = lambda environ: False

    @property
    def address(self) -> str:
        """Where it listens, as a URL."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, port: int | None = None) -> dict[str, str]:
        """The environment variables by which it is found."""
        address = f"http://127.0.0.1:{port or self.port}"
        if self.scheme == "s3":
            return {
                "AWS_ENDPOINT_URL": address,
                "AWS_REGION": "us-east-1",
                **self.keys,
            }
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": address}
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{address}/{_ACCOUNT}",
        }

    def bucket(self) -> str:
        """The URL of a new, empty bucket."""
        name = f"bucket{uuid.uuid4().hex[:12]}"  # The map of Google's takes no hyphen.
        if self.scheme == "az":
            _make_container(self.port, name)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            connection.request("PUT", f"/{name}")
            assert connection.getresponse().status == 200
            connection.close()
        return f"{self.scheme}://{name}"

    def reset(self) -> None:
        """Forget what went before, and behave."""
        self.requests, self.sent = {}, 0
        self.before, self.lose = lambda environ: None, lambda environ: False

    def wrap(self, app: App) -> App:
        """`app`, with what this server is told to do to it."""

        def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            method = environ["REQUEST_METHOD"]
            self.requests[method] = self.requests.get(method, 0) + 1
            self.sent += int(environ.get("CONTENT_LENGTH") or 0)
            instead = self.before(environ)
            if instead is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start(instead[0], [("Content-Length", str(len(instead[1])))])
                return [instead[1]]
            if not self.lose(environ):
                return app(environ, start)
            with contextlib.closing(_Lost()) as lost:
                b"".join(app(environ, lost.start))
            raise ConnectionAbortedError

        return wrapped


class _Lost:
    def start(self, *args: Any) -> None:
        pass

    def close(self) -> None:
        pass


@functools.cache
def s3() -> Server:
    """moto, as S3; one for the whole process."""
    return _serve(Server("s3"), _moto())


@functools.cache
def google() -> Server:
    """Google's XML API in front of moto."""
    return _serve(Server("gs"), _as_google(_moto()))


@functools.cache
def careless() -> Server:
    """s3rver, an S3 that ignores conditions; the test is skipped if it cannot be installed."""
    keys = {"AWS_ACCESS_KEY_ID": "S3RVER", "AWS_SECRET_ACCESS_KEY": "S3RVER"}
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    port = _start(_program("s3rver@3", "s3rver"), "--directory", directory, "--port")
    return Server("s3", port, keys)


@functools.cache
def azure() -> Server:
    """azurite, in a process of its own; the test is skipped if it cannot be installed."""
    program = _program("azurite@3", "azurite-blob")
    options = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    return Server("az", _start(program, *options, "--blobPort"))


SERVERS: dict[str, Callable[[], Server]] = {"s3": s3, "google": google, "azure": azure}


def _start(*command: str) -> int:
    """Start a server, whose last argument is the port, and return the port when it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    atexit.register(process.kill)
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return port
        time.sleep(0.05)
    raise RuntimeError(f"'{command[0]}' ended with {process.returncode}.")


def _program(package: str, name: str) -> str:
    """A program of an npm package, which is installed on first use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "keras-export-callbacks" / package.partition("@")[0]
    program = home / "node_modules" / ".bin" / name
    npm = shutil.which("npm")
    if not program.exists() and npm is not None:
        home.mkdir(parents=True, exist_ok=True)
        # Of several processes that do this at once, each makes its own, and one is kept.
        made = Path(f"{home}-{uuid.uuid4().hex}")
        made.mkdir()
        subprocess.run(
            [npm, "install", "--no-fund", "--no-audit", "--prefix", str(made), package],
            capture_output=True,
            timeout=300,
            check=False,
        )
        if (made / "node_modules" / ".bin" / name).exists():
            with contextlib.suppress(OSError):
                os.rename(made / "node_modules", home / "node_modules")
        shutil.rmtree(made, ignore_errors=True)
    if not program.exists():
        pytest.skip(f"{package} cannot be installed: there is no npm, or no registry")
    return str(program)


def _moto() -> App:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    return _one_at_a_time(DomainDispatcherApplication(create_backend_app))


def _one_at_a_time(inner: App) -> App:
    """`inner`, serving one request after another.

    moto looks whether an object is there and then writes it, and another thread may write
    it in between. A real store does both in one step.
    """
    lock = threading.Lock()

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with lock:
            return list(inner(environ | {"wsgi.input": io.BytesIO(body)}, start))

    return app


def _serve(server: Server, app: App) -> Server:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
            pass

        def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
            self.close_connection = True

    made = make_server("127.0.0.1", 0, server.wrap(app), threaded=True, request_handler=Handler)
    made.daemon_threads = True
    made.block_on_close = False
    made.request_queue_size = 128
    server.port = made.server_port
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return server


# The names of Google's generations, which are numbers, and moto's ETags.
_generations: dict[str, str] = {}


def _as_google(inner: App) -> App:
    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if wanted == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        elif wanted:
            environ["HTTP_IF_MATCH"] = _generations.get(wanted, '"none"')
        if source := environ.pop("HTTP_X_GOOG_COPY_SOURCE", None):
            environ["HTTP_X_AMZ_COPY_SOURCE"] = source
        for name in [name for name in environ if name.startswith("HTTP_X_GOOG_META_")]:
            environ[name.replace("GOOG", "AMZ")] = environ.pop(name)
        environ["HTTP_AUTHORIZATION"] = (
            "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, "
            "SignedHeaders=host, Signature=0"
        )

        def begin(status: str, headers: list[tuple[str, str]], exc: Any = None) -> Any:
            headers = [
                (name.lower().replace("x-amz-meta-", "x-goog-meta-"), value)
                for name, value in headers
            ]
            tag = dict(headers).get("etag")
            if tag is not None:
                generation = str(int(hashlib.md5(tag.encode()).hexdigest()[:13], 16))
                _generations[generation] = tag
                headers = [*headers, ("x-goog-generation", generation)]
            return start(status, headers, exc)

        return inner(environ, begin)

    return app


def _make_container(port: int, name: str) -> None:
    import base64
    import hmac
    from email.utils import formatdate

    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    text = "PUT" + "\n" * 12 + canonical + f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    key = base64.b64decode(_ACCOUNT_KEY)
    signed = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{signed}"
    headers["Content-Length"] = "0"
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{_ACCOUNT}/{name}?restype=container", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    connection.close()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port on which connections are accepted, and nothing is ever said."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield int(listening.getsockname()[1])


class Relay:
    """A port that leads to a server, as long as it is not cut.

    Args:
        port: the server's.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: socketserver.ThreadingTCPServer | None = None
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Listen, on the same port as before."""
        target = self._target

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", target)) as other,
                ):
                    back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
                    back.start()
                    _pump(self.request, other)
                    back.join()

        class Listening(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self._server = Listening(("127.0.0.1", self.port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def cut(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
