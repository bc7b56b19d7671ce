"""Adapters and base models by hub id, from a server on this machine that speaks what the hub's client needs."""

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from osrm_cli.storage import records
from tests.run_cli import ROOT, Run, process
from tests.trained_adapters import dense, save

COMMITS = {"user/base": "ba5e" * 10, "user/adapter-a": "aaaa" * 10, "user/adapter-b": "bbbb" * 10}
COMMITS["user/pickle"] = "c0de" * 10
OLD = "01d0" * 10  # the tag v1 of the base model: its first weights
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin")


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in folders: ``<owner>/<name>/<commit>/``."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.asked: list[str] = []
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """The hub's three questions: which commit, which files, and a file's head or body."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        words = self.path.partition("?")[0].strip("/").split("/")
        if words[0] == "api":
            name, kind, revision = "/".join(words[2:4]), words[4], words[5]
        else:
            name, kind, revision = "/".join(words[:2]), words[2], words[3]
        if name == "user/busy":
            return self.refuse(503, "")
        if name not in COMMITS:
            return self.refuse(401, "RepoNotFound")
        commit = {"main": COMMITS[name], COMMITS[name]: COMMITS[name], "v1": OLD, OLD: OLD}.get(revision)
        if commit is None or not (folder := self.server.root / name / commit).is_dir():
            return self.refuse(404, "RevisionNotFound")
        if kind == "resolve":
            return self.file(folder, words[-1], commit)
        files = [described(path) for path in sorted(folder.iterdir())]
        if kind == "tree":
            return self.answer(json.dumps(files).encode())
        siblings = [{"rfilename": file["path"]} for file in files]
        return self.answer(json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode())

    def file(self, folder: Path, name: str, commit: str) -> None:
        path = folder / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        facts = described(path)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{facts["oid"]}"'}
        if large := facts.get("lfs"):
            headers |= {"X-Linked-Etag": f'"{large["oid"]}"', "X-Linked-Size": str(large["size"])}
        if self.command == "GET":
            self.server.fetched.append(f"{folder.parent.name}/{name}")
        return self.answer(path.read_bytes(), headers)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.answer(b"", {**(headers or {}), "X-Error-Code": code}, status)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Quiet."""


def described(path: Path) -> dict[str, object]:
    """A file as the hub lists it: large ones by their SHA-256, small ones by git's id."""
    body = path.read_bytes()
    facts = {"type": "file", "path": path.name, "size": len(body)}
    if path.suffix in (".safetensors", ".bin"):
        digest = hashlib.sha256(body).hexdigest()
        facts["lfs"] = {"oid": digest, "size": len(body), "pointerSize": 134}
    return {**facts, "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}


@pytest.fixture(scope="module")
def repositories(tiny_model, text_tasks, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    base = root / "user/base" / COMMITS["user/base"]
    shutil.copytree(tiny_model("bert"), base)
    shutil.copytree(base, root / "user/base" / OLD)
    (root / "user/base" / OLD / "model.safetensors").write_bytes(changed((base / "model.safetensors").read_bytes()))
    for name, task in (("user/adapter-a", "mood"), ("user/adapter-b", "pair")):
        folder = root / name / COMMITS[name]
        save(folder.parent / task, base, "bert", text_tasks)
        shutil.copytree(folder.parent / task, folder, ignore=shutil.ignore_patterns("osrm.json"))
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "user/base"}))
    pickle = root / "user/pickle" / COMMITS["user/pickle"]
    pickle.mkdir(parents=True)
    shutil.copy(base / "config.json", pickle)
    for folder in (base, pickle, *(root.glob("user/adapter-*/*"))):
        for name in PICKLES:
            (folder / name).write_bytes(b"a pickle would run code")
    return root


def changed(weights: bytes) -> bytes:
    return weights[:-1] + bytes([weights[-1] ^ 1])


@pytest.fixture
def hub(repositories):
    server = Hub(repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def online(tmp_path: Path, endpoint: str) -> dict[str, str]:
    """An environment with an empty cache, in which the hub is at ``endpoint``."""
    return {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


SEVERAL = """
import json, sys, time
import osrm_cli.merging.plan, osrm_cli.models.classifier  # importing them takes seconds of its own
from tests.run_cli import osrm
found = []
for words in json.loads(sys.argv[1]):
    begin = time.monotonic()
    run = osrm(*words, cwd=".")
    found.append([run.code, run.stdout, run.stderr, time.monotonic() - begin])
print(json.dumps(found))
"""


def several(*calls: tuple[str, ...], cwd: Path, env: dict[str, str]) -> list[tuple[Run, float]]:
    """Commands one after another in one process, which reads the environment when it starts; with their seconds."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(calls)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [(Run(*words), seconds) for *words, seconds in json.loads(done.stdout)]


MERGE = ("merge", "user/adapter-a", "user/adapter-b@main", "--as", "model", "--quiet")


def test_merge_by_hub_id_then_again_without_a_network(hub, repositories, tmp_path):
    env = online(tmp_path, hub.url)
    run = process(*MERGE, cwd=tmp_path, env=env)
    assert (run.code, run.stderr) == (0, "")

    assert {name.rpartition("/")[2] for name in hub.fetched} <= {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("adapter_config.json", "adapter_model.safetensors"),
    }
    record = records.read_record(tmp_path / "merged")
    assert record["base"]["name"] == "user/base"
    assert record["base"]["revision"] == COMMITS["user/base"]
    assert [part["commit"] for part in record["inputs"]] == ["aaaa" * 10, "bbbb" * 10]
    recipe = yaml.safe_load((tmp_path / "merged/merge.yaml").read_text())
    assert [part["path"] for part in recipe["adapters"]] == [
        f"user/adapter-{x}@{COMMITS[f'user/adapter-{x}']}" for x in "ab"
    ]

    base = repositories / "user/base" / COMMITS["user/base"]
    layer = "encoder.layer.1.attention.self.query"
    before = load_file(base / "model.safetensors")[f"{layer}.weight"]
    parts = [dense(repositories / f"user/adapter-{x}" / task, base, task) for x, task in (("a", "mood"), ("b", "pair"))]
    updates = [part.get_submodule(f"bert.{layer}").weight.detach() - before for part in parts]
    merged = load_file(tmp_path / "merged/model.safetensors")[f"{layer}.weight"]
    torch.testing.assert_close(merged, before + sum(updates))

    weights = (tmp_path / "merged/model.safetensors").read_bytes()
    asked = len(hub.asked)
    calls = (MERGE, ("merge", "--recipe", "merged/merge.yaml", "--quiet"))
    env |= {"HF_ENDPOINT": nowhere()}
    for run, seconds in several(*((*words, "--out", "again", "--overwrite") for words in calls), cwd=tmp_path, env=env):
        assert (run.code, run.stderr) == (0, "")
        assert seconds < 15
        assert (tmp_path / "again/model.safetensors").read_bytes() == weights
    assert len(hub.asked) == asked


def test_a_folder_that_is_gone_is_not_asked_for(hub, repositories, tmp_path):
    """The hub has a repository of that name, but the merge did not come from it."""
    for x, task in (("a", "mood"), ("b", "pair")):
        shutil.copytree(repositories / f"user/adapter-{x}" / task, tmp_path / f"user/adapter-{x}")
    env = online(tmp_path, hub.url)
    assert process("merge", "user/adapter-a", "user/adapter-b", "--quiet", cwd=tmp_path, env=env).code == 0
    (tmp_path / "user").rename(tmp_path / "elsewhere")
    calls = (("calibrate", "merged", "--dry-run"), ("verify", "merged"))
    calibrate, verify = (run for run, _ in several(*calls, cwd=tmp_path, env=env))
    assert calibrate.error == "the adapter that 'mood' was merged from is not available: user/adapter-a is missing"
    assert "--adapters FOLDER" in calibrate.stderr
    assert verify.code == 1
    assert "user/adapter-b is missing" in verify.stdout + verify.stderr
    assert hub.asked == []


def test_collect_on_a_base_model_of_one_revision(hub, text_tasks, tmp_path):
    env = online(tmp_path, hub.url)
    given = ("collect", "--data", text_tasks, "--task", "mood", "--samples", "4", "--quiet", "--model", "user/base")
    run = process(*given, "--revision", "v1", cwd=tmp_path, env=env)
    assert (run.code, run.stderr) == (0, "")
    from osrm_cli.features.feature_set import FeatureSet

    found = FeatureSet.open(tmp_path / "features").base
    weights = hub.root / "user/base" / OLD / "model.safetensors"
    line = f"model.safetensors\0{hashlib.sha256(weights.read_bytes()).hexdigest()}\n"
    assert (found.name, found.revision) == ("user/base", OLD)
    assert found.sha256 == hashlib.sha256(line.encode()).hexdigest()
    assert not any(name.endswith(".bin") for name in hub.fetched)


ABSENT = {
    "user/none": "adapter 'user/none' is neither a folder nor public on the hub",
    "user/adapter-a@v9": "adapter 'user/adapter-a' has no revision 'v9' on the hub",
    "user/base": "adapter 'user/base' has no adapter_config.json on the hub",
    "user/busy": "adapter 'user/busy' is neither a folder nor in the hub's cache, and the hub answers 503",
}


def test_what_the_hub_lacks_is_told_at_once(hub, tmp_path):
    calls = [("merge", given) for given in ABSENT]
    pickle = ("collect", "--data", "mini", "--task", "mini-mood", "--model", "user/pickle")
    *found, refused = several(*calls, pickle, cwd=tmp_path, env=online(tmp_path, hub.url))
    for message, (run, seconds) in zip(ABSENT.values(), found, strict=True):
        assert (run.code, run.error) == (1, message)
        assert len(run.stderr.splitlines()) == 2  # the error and what to do
        assert seconds < 15  # the hub's client alone would take 23
    assert len([path for path in hub.asked if "user/busy" in path]) == 1
    assert "no safetensors weights" in refused[0].error
    assert hub.fetched == ["pickle/config.json"]
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_no_network_is_told_at_once(tmp_path):
    """Also for a commit, for which the hub's client would ask for a list of files for 23 s."""
    calls = [("merge", "user/adapter-a" + revision) for revision in ("", "@v1", "@" + "aaaa" * 10)]
    for run, seconds in several(*calls, cwd=tmp_path, env=online(tmp_path, nowhere())):
        assert run.code == 1
        assert run.error == (
            "adapter 'user/adapter-a' is neither a folder nor in the hub's cache, "
            "and the hub cannot be reached (ConnectError)"
        )
        assert seconds < 15  # the hub's client alone would take 23
