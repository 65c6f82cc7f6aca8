"""`furnace publish --push`: real requests of huggingface_hub to a small server of its API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.publishing.hub import check_push

TOKEN = "hf_" + "a1" * 17
REPO = "gretchen/study"
PUSH = (
    "import sys\nfrom pathlib import Path\nfrom furnace_hpc.cli import run_command\n"
    "from furnace_hpc.publishing.hub import check_push, push\n"
    "def main(folder: Path, repo: str):\n"
    "    print(push(folder, repo, check_push(repo), False))\n"
    "run_command(main)"
)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that an upload uses."""

    protocol_version = "HTTP/1.1"
    created: dict
    files: dict[str, bytes]
    blobs: dict[str, bytes]

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body, url = self._body(), f"http://127.0.0.1:{self.server.server_port}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "You don't have the rights"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self._answer({"url": f"{url}/{REPO}"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            self._answer({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif self.path == f"/{REPO}.git/info/lfs/objects/batch":
            objects = [_upload(url, file) for file in json.loads(body)["objects"]]
            self._answer({"transfer": "basic", "objects": objects})
        elif self.path == f"/api/models/{REPO}/commit/main":
            self._commit(body.decode())
            self._answer({"commitUrl": f"{url}/{REPO}/commit/c0", "commitOid": "c0" * 20})
        else:
            self._answer({"error": f"no {self.path}"}, 404)

    def _commit(self, lines: str) -> None:
        for line in lines.splitlines():
            value = json.loads(line)["value"]
            if "content" in value:
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif "oid" in value:
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]


def _mode(path: str) -> dict:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def _upload(url: str, file: dict) -> dict:
    return {**file, "actions": {"upload": {"href": f"{url}/lfs/{file['oid']}"}}}


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.blobs, server.created = {}, {}, {}
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(folder: Path, port: int, token: str, home: Path, **more: str):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), REPO],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "out"
    (place / "results").mkdir(parents=True)
    (place / "README.md").write_text("---\nlibrary_name: furnace-hpc\n---\n# study\n")
    (place / "model.safetensors").write_bytes(os.urandom(5000))
    (place / "results" / "table.csv").write_text("variant\nbase\n")
    return place


def test_the_hub_gets_every_file(hub, folder: Path, tmp_path: Path):
    """In a private repository, with large files by LFS."""
    done = pushed(folder, hub.server_port, TOKEN, tmp_path / "hf")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"http://127.0.0.1:{hub.server_port}/{REPO}"
    assert (hub.created["organization"], hub.created["name"]) == tuple(REPO.split("/"))
    assert hub.created["visibility"] == "private"
    wanted = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert hub.files == wanted
    assert [*hub.blobs] == [hashlib.sha256(wanted["model.safetensors"]).hexdigest()]


def test_a_refused_token_is_one_error(hub, folder: Path, tmp_path: Path):
    done = pushed(folder, hub.server_port, TOKEN[:-1] + "2", tmp_path / "hf")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: the hub refuses to write to {REPO} (status 403)")
    assert f"hf upload {REPO} {folder}" in done.stderr
    assert "Traceback" not in done.stderr
    assert hub.files == {}


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["closed", "offline"])
def test_no_network_is_one_error(hub, folder: Path, tmp_path: Path, more: dict[str, str]):
    """Nothing listens at the port, or the user has switched the network off."""
    hub.shutdown()
    hub.server_close()
    done = pushed(folder, hub.server_port, TOKEN, tmp_path / "hf", **more)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the hub http://127.0.0.1:")
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_token_and_a_wrong_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both are found before anything is computed."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is none. Run `hf auth login`, or set HF_TOKEN"):
        check_push(REPO)
    for name in ("study", "a/b/c", "../x", "a b/c"):
        with pytest.raises(ConfigError, match="is not a repository. Give OWNER/NAME"):
            check_push(name)
