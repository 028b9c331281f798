"""A Hugging Face hub on this machine: the few requests huggingface_hub makes, answered from local folders."""

import hashlib
import json
import tempfile
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_fake"  # opens gated repositories


class FakeHub:
    """`with FakeHub({"owner/name": folder}) as hub`: serves the folders as repositories at revision main and its commit.

    `gated` repositories answer only to `TOKEN`; `branches` are further revisions that exist everywhere. `broken` makes
    every request fail with that status. `requests` lists what was asked for.
    """

    def __init__(self, repos: Mapping[str, Path], gated: Iterable[str] = (), branches: Iterable[str] = ()):
        self.repos = {repo: Path(folder) for repo, folder in repos.items()}
        self.gated, self.branches = set(gated), {"main", *branches}
        self.broken: int | None = None
        self.requests: list[str] = []

    def __enter__(self) -> "FakeHub":
        self._cache = tempfile.TemporaryDirectory()
        self.cache = Path(self._cache.name)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()
        self._cache.cleanup()

    def stop(self) -> None:
        """Take the hub off the network; what was downloaded stays in the cache."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that point another process at this hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.cache),
            "HF_HUB_CACHE": str(self.cache / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }

    def patch(self, monkeypatch) -> None:
        """Point huggingface_hub in this process at this hub."""
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        files = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(self.cache / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def commit(self, repo: str) -> str:
        """The repository's only commit: 40 hexadecimal digits."""
        return hashlib.sha1(repo.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            return self.refuse(self.hub.broken)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        listing = parts[:2] == ["api", "models"]
        if listing:
            parts = parts[2:]
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo not in self.hub.repos:
            return self.refuse(404 if self.allowed() else 401, "RepoNotFound")
        if repo in self.hub.gated and not self.allowed() and not (listing and rest[:1] != ["tree"]):
            return self.refuse(403, "GatedRepo")
        if rest and rest[1] not in {*self.hub.branches, self.hub.commit(repo)}:
            return self.refuse(404, "RevisionNotFound")
        if listing:
            return self.list_files(repo, tree=rest[:1] == ["tree"])
        return self.send_file(repo, "/".join(rest[2:]))

    def allowed(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def list_files(self, repo: str, tree: bool) -> None:
        files = sorted(path for path in self.hub.repos[repo].rglob("*") if path.is_file())
        names = {str(path.relative_to(self.hub.repos[repo])): path for path in files}
        if tree:
            data = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)} for name, path in names.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in names]
            data = {
                "id": repo,
                "sha": self.hub.commit(repo),
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
        self.send(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo: str, name: str) -> None:
        path = self.hub.repos[repo] / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send(path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": self.hub.commit(repo)})

    def send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
