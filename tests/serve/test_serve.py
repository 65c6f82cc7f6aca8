"""`furnace serve`: answers, limits, refusals and the end of the server."""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_study import Running, running
from use_study import tridigits_model, tridigits_samples  # noqa: F401  fixtures

from furnace_hpc.cli import run_command
from furnace_hpc.commands.serve import main
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.batch_predict import content
from furnace_hpc.serving import server
from furnace_hpc.serving.app import numbers_of
from furnace_hpc.serving.hosts import Hosts, bound_socket, is_same_origin
from furnace_hpc.serving.worker import Busy, Worker


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest) -> Any:
    predictor = Predictor.load(request.getfixturevalue("model"), "cpu")
    with running(predictor) as found:
        yield found


@pytest.fixture(scope="module")
def sample(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The first test sample: a text and two files."""
    path = request.getfixturevalue("samples")
    line = json.loads(path.read_text().splitlines()[0])
    return {"text": line["text"]} | {name: path.parent / line[name] for name in ("image", "audio")}


def post(served: Running, **given: Any) -> httpx.Response:
    """Send texts as fields and paths as files."""
    files = {
        name: (value.name, value.read_bytes())
        for name, value in given.items()
        if isinstance(value, Path)
    }
    data = {name: value for name, value in given.items() if not isinstance(value, Path)}
    return httpx.post(f"{served.url}/predict", data=data, files=files or None, timeout=120)


def test_answers_are_those_of_predict(served: Running, sample: dict[str, Any]):
    """From each subset, also without a file."""
    for names in (("text",), ("image",), ("text", "audio"), ("text", "image", "audio")):
        given = {name: sample[name] for name in names}
        answer = post(served, **given)
        assert answer.status_code == 200, answer.text
        assert answer.json() == content(served.predictor.predict(**given), None)
        assert answer.json()["modalities"] == list(names)


def test_bad_input_is_named(served: Running, sample: dict[str, Any], tmp_path: Path):
    """With the name that the sender gave, and the server answers the next request."""
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"no picture")
    cases = [
        ({"image": broken}, "image 'holiday.png' is unreadable"),
        ({"audio": sample["image"]}, f"audio '{sample['image'].name}' is unreadable"),
        ({}, "nothing is given. Give any of text, image, audio"),
        ({"text": "  "}, "nothing is given"),
        ({"image": "a word"}, "image is text, wanted a file"),
        ({"text": broken}, "text is a file, wanted text"),
        ({"picture": "x"}, "unknown field 'picture'"),
        ({"numbers": '{"age": 4}'}, "numbers is given, but this model uses only"),
        ({"text": "a", "text_pair": "b"}, "wanted a string"),
    ]
    for given, words in cases:
        answer = post(served, **given)
        assert answer.status_code == 400, (given, answer.text)
        assert words in answer.json()["error"]
        assert "/tmp" not in answer.json()["error"]
    twice = [("text", (None, "a")), ("text", (None, "b"))]
    answer = httpx.post(f"{served.url}/predict", files=twice)
    assert (answer.status_code, "given twice" in answer.text) == (400, True)
    assert post(served, text="it is even").status_code == 200


def test_large_requests_are_refused(served: Running, tmp_path: Path):
    """With a length in the header, in chunks without one, and as a text."""
    large = tmp_path / "large.png"
    large.write_bytes(bytes(2**20 + 1))
    answer = post(served, image=large)
    assert answer.status_code == 413
    assert "the request has more than 1 MiB" in answer.json()["error"]
    kind = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    chunks = iter([head, *[bytes(2**16)] * 40, b"\r\n--x--\r\n"])
    answer = httpx.post(f"{served.url}/predict", content=chunks, headers=kind, timeout=60)
    assert answer.status_code == 413, answer.text
    assert "--max-mib" in answer.json()["error"]
    assert post(served, text="it is even").status_code == 200


def raw(served: Running, method: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", "0")
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1.evil.example", "x@y"]
)
def test_other_host_names_are_refused(served: Running, host: str):
    """As of a page whose name points to this machine (DNS rebinding)."""
    status, text = raw(served, "GET", "/health", Host=host.format(served.port))
    assert (status, "is not a name of this server" in text) == (403, True)


def test_own_names_are_answered(served: Running):
    for host in (f"localhost:{served.port}", "127.0.0.1:9999", "LOCALHOST", "[::1]:80"):
        assert raw(served, "GET", "/health", Host=host)[0] == 200, host


def test_pages_of_other_sites_are_refused(served: Running):
    """They could send a form without a preflight request."""
    host = f"127.0.0.1:{served.port}"
    status, text = raw(served, "POST", "/predict", Host=host, Origin="https://evil.example")
    assert (status, "the request is from a page of 'https://evil.example'" in text) == (403, True)
    assert raw(served, "POST", "/predict", Host=host, Origin="null")[0] == 403
    assert raw(served, "POST", "/predict", Host=host, Origin=f"http://{host}")[0] == 400
    assert not is_same_origin("http://localhost:8000", "127.0.0.1:8000")


def test_the_page_loads_nothing_from_elsewhere(served: Running):
    """Its policy forbids it, inline scripts and frames. Answers to errors have it too."""
    page = httpx.get(served.url)
    assert page.status_code == 200
    assert "http" not in re.sub(r"<!doctype html>", "", page.text)
    assert re.findall(r"<script(?! src=\"serve\.js\")|style=|\son\w+=", page.text) == []
    for path in ("/", "/health", "/serve.js", "/serve.css", "/nothing"):
        answer = httpx.get(served.url + path)
        assert answer.status_code == (404 if path == "/nothing" else 200)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    for name in ("serve.js", "serve.css"):
        assert "//" not in re.sub(
            r"^\s*//.*$", "", httpx.get(f"{served.url}/{name}").text, flags=re.M
        )
    health = httpx.get(f"{served.url}/health").json()
    assert health["status"] == "ok"
    assert health["modalities"] == ["text", "image", "audio"]
    assert httpx.get(f"{served.url}/predict").status_code == 405


def test_one_prediction_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch):
    """Three requests wait, and the fourth is refused at once."""
    predictor = Predictor.load(model, "cpu")
    go, active, most = threading.Event(), [], []
    predict_many = predictor.predict_many

    def slow(samples: Any) -> Any:
        active.append(1)
        most.append(len(active))
        go.wait(60)
        active.pop()
        return predict_many(samples)

    monkeypatch.setattr(predictor, "predict_many", slow)
    with running(predictor, max_waiting=3) as served:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(post(served, text="it is even")))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while served.worker.waiting < 3:
            pass
        refused = post(served, text="it is even")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert "too many requests are waiting" in refused.json()["error"]
        assert httpx.get(f"{served.url}/health").json()["waiting"] == 3
        go.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3
        assert max(most) == 1
        assert (served.worker.waiting, served.worker.answered) == (0, 3)


def test_an_unexpected_error_ends_one_request(served: Running, monkeypatch: pytest.MonkeyPatch):
    def fail(samples: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(served.predictor, "predict_many", fail)
        answer = post(served, text="it is even")
    assert answer.status_code == 500
    assert answer.json() == {"error": "the prediction failed (RuntimeError: out of memory)"}
    assert post(served, text="it is even").status_code == 200


def refused(capsys: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_refusals_before_the_start(tmp_path: Path, capsys: Any, monkeypatch: Any):
    """The network without the option, a port in use, a missing package and a missing model."""
    for host in ("0.0.0.0", "::", "192.0.2.7", "cluster.example"):
        problem = refused(capsys, "--model", tmp_path, "--host", host)
        assert f"--host {host} opens the model to the network: all who can reach" in problem
        assert "ssh -L 8000:127.0.0.1:8000" in problem
        assert "--allow-network" in problem
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        problem = refused(capsys, "--model", tmp_path, "--port", port)
    assert f"--port {port} cannot be opened (Address already in use). Give another" in problem
    assert "is not an exported model" in refused(capsys, "--model", tmp_path, "--port", 0)
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    problem = refused(capsys, "--model", tmp_path)
    assert "not installed: starlette, uvicorn, python-multipart. Run pip install" in problem


def test_names_of_an_open_server():
    """Every address is right, because no other site can own it. Other names are not."""
    hosts = Hosts.of("0.0.0.0")
    assert hosts.knows("10.1.2.3:8000")
    assert hosts.knows("[fe80::1]:8000")
    assert not hosts.knows("evil.example:8000")
    assert not Hosts.of("127.0.0.1").knows("10.1.2.3")


def test_numbers_are_a_json_object():
    assert numbers_of('{"age": 41, "height": null}') == {"age": 41, "height": None}
    for text in ("age=41", "[1]", "[" * 100_000):
        with pytest.raises(ConfigError, match="wanted a JSON object such as"):
            numbers_of(text)
    assert issubclass(Busy, Exception)
    assert Worker


@pytest.mark.slow
def test_ctrl_c_ends_the_server(model: Path, sample: dict[str, Any]):
    """The command prints its address, answers a request with a file, and ends with 0."""
    words = [sys.executable, "-m", "furnace_hpc", "serve", "--model", str(model)]
    child = subprocess.Popen(
        [*words, "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = child.stdout.readline()
        url = re.search(r"answers at (http://127\.0\.0\.1:\d+)$", first)
        assert url, first + child.stderr.read()
        assert "other machines cannot" in child.stdout.readline()
        files = {"image": (sample["image"].name, sample["image"].read_bytes())}
        answer = httpx.post(f"{url[1]}/predict", files=files, timeout=300)
        assert answer.status_code == 200, answer.text
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out, err) == (0, "stopped after 1 answers\n", "")
    finally:
        child.kill()
        child.wait()
