import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import transfusion.runner.submit as submission
from transfusion.errors import SpecError
from transfusion.runner.ray_jobs import ClusterError, connection
from transfusion.runner.submit import cancel, logs, runtime_env, submit

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]

# Stands in for an image without our packages: paths that an editable install put there are taken out again.
HIDE = f"""
import sys
ours = {[str(REPOSITORY), str(REPOSITORY / "platform")]!r}
sys.path[:] = [path for path in sys.path if path not in ours]
"""

STAGES = {
    "docs": {"uses": "data_pipelines.sources.python_docs"},
    "tokenizer": {
        "uses": "data_pipelines.tokenizer",
        "inputs": {"documents": "docs"},
        "config": {"vocab_size": 400},
    },
    # A Ray Data job: its actors need our packages as much as the driver does.
    "tokens": {
        "uses": "data_pipelines.tokenize_text",
        "inputs": {"documents": "docs", "tokenizer": "tokenizer"},
    },
}


@dataclass(frozen=True)
class Cluster:
    address: str
    token_file: Path
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def processes_with(setting: str) -> list[int]:
    """The processes whose environment holds `NAME=value`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray of its own with token authentication, as `ray start --head` makes it, without our packages."""
    # Ray's sockets lie below this folder, and their paths may have 107 characters.
    home = Path(tempfile.mkdtemp(prefix="tf-ray-"))
    (home / "hide").mkdir()
    (home / "hide" / "sitecustomize.py").write_text(HIDE)
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAY_", "PYTHON", "TRANSFUSION_"))
    } | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(home / "hide"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "metrics-export-port", "ray-client-server-port", "runtime-env-agent-port"]  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={home / 'ray'}",
        "--object-store-memory=200000000", *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (home / "log").open("w") as log:
        head = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=home, start_new_session=True
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 120
        while status_of(f"{address}/api/jobs/", token.read_text()) != 200:
            assert head.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.5)
        yield Cluster(address, token, environment)
    finally:
        # `ray stop` would stop every Ray of this machine; only what this one started is ended here.
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=5)
        for pid in processes_with(f"RAY_AUTH_TOKEN_PATH={token}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(timeout=10)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def address(cluster, monkeypatch) -> str:
    """The cluster's address, in an environment like a user's who has its token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_file))
    # Ray would let this win over the address that it is given.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    return cluster.address


@pytest.fixture
def job(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"store": str(tmp_path / "store"), "stages": STAGES}))
    return path


def status_of(url: str, token: str | None) -> int | None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=10
        ) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_until_ended(address: str, submission_id: str) -> str:
    return "".join(logs(submission_id, address=address, follow=True))


def ids(address: str) -> list[str]:
    with connection(address) as client:
        return [job.submission_id for job in client.list_jobs() if job.submission_id]


def test_the_job_server_answers_nobody_without_the_token(cluster):
    url = f"{cluster.address}/api/jobs/"
    assert status_of(url, None) == 401
    assert status_of(url, "f" * 64) == 403
    assert status_of(url, cluster.token_file.read_text()) == 200


def test_the_smoke_job_runs_on_a_cluster_without_our_packages_and_only_once(
    cluster, address, tmp_path
):
    lacking = subprocess.run(
        ["python", "-c", "import transfusion"], env=cluster.environment, cwd=tmp_path, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "No module named 'transfusion'" in lacking.stderr, "the control: the cluster lacks them"

    smoke, overrides = REPOSITORY / "jobs" / "smoke.yaml", [f"store={tmp_path / 'store'}"]
    first = submit(smoke, overrides, address=address)
    second = submit(smoke, overrides, address=address)
    name = first.split()[1]
    assert first.startswith("submitted smoke-")
    assert second.startswith(f"{name} is there already")
    printed = wait_until_ended(address, name)
    third = submit(smoke, overrides, address=address)
    assert "succeeded; nothing was started" in third, printed
    assert ids(address).count(name) == 1
    assert len(list((tmp_path / "store").glob("transfusion.report/*/manifest.json"))) == 1

    whole = "".join(logs(name, address=address))
    assert "report.html" in whole
    assert whole.startswith(printed[:200])
    assert len(whole) == len(printed), "following gives every character once"
    assert "is not running: SUCCEEDED" in cancel(name, address=address)


def test_of_two_submissions_at_the_same_moment_one_starts_the_job(address, job):
    job.write_text(job.read_text().replace("/store", "/other"))
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda _: submit(job, address=address, until="docs"), range(3)))
    assert sorted(text.split()[0] == "submitted" for text in told) == [False, False, True]
    (name,) = {text.split()[1] for text in told if text.startswith("submitted")}
    assert all(name in text for text in told)
    assert ids(address).count(name) == 1


def test_another_job_has_another_id_and_may_not_take_one_that_is_known(address, job):
    first = submit(job, address=address, submission_id="mine", until="docs")
    assert first.startswith("submitted mine")
    with pytest.raises(ClusterError, match="knows it as another job"):
        submit(job, ["seed=1"], address=address, submission_id="mine")


def test_a_failed_job_is_told_and_tried_again_only_when_asked(address, job):
    broken = ["store=/dev/null/nowhere"]
    name = submit(job, broken, address=address).split()[1]
    assert "nowhere" in wait_until_ended(address, name)
    told = submit(job, broken, address=address)
    assert "ended as FAILED; nothing was started" in told
    assert "--retry 1" in told
    again = submit(job, broken, address=address, retry=1)
    assert again.startswith(f"submitted {name}-retry1")


def test_cancel_stops_a_running_job_with_all_its_processes(address, tmp_path):
    mark = tmp_path / "pid"
    with connection(address) as client:
        client.submit_job(
            entrypoint=f"echo started; echo $$ > {mark}; sleep 600", submission_id="long"
        )
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert cancel("long", address=address) == "long stopped: STOPPED"
    assert "started" in "".join(logs("long", address=address))
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


class DroppingServer:
    """Breaks the stream off after a few characters, again and again; each stream begins at the start."""

    text = "".join(f"line {number}\n" for number in range(40))

    def __init__(self) -> None:
        self.streams = 0

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        self.streams += 1
        end = 90 * self.streams
        for start in range(0, min(end, len(self.text)), 7):
            yield self.text[start : min(start + 7, end)]
        if end < len(self.text):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return SimpleNamespace(status="RUNNING" if 90 * self.streams < len(self.text) else "FAILED")

    def get_job_logs(self, submission_id: str) -> str:
        return self.text + "last words\n"


def test_following_goes_on_where_a_connection_broke_off(monkeypatch):
    monkeypatch.setattr(submission, "PAUSE_S", 0.0)
    server = DroppingServer()
    assert "".join(submission._follow(server, "x")) == server.text + "last words\n"
    assert server.streams > 2


def test_an_unknown_submission_is_told_with_those_that_are_known(address):
    for ask in (lambda: "".join(logs("nonesuch", address=address)),
                lambda: cancel("nonesuch", address=address)):  # fmt: skip
        with pytest.raises(ClusterError, match="no submission 'nonesuch'; it knows"):
            ask()


def test_a_missing_and_a_wrong_token_are_told_apart(address, job, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    with pytest.raises(ClusterError, match="wants a token, and no token was found"):
        submit(job, address=address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(ClusterError, match="wants a token, and the token was refused"):
        submit(job, address=address)


def test_an_address_where_nobody_is_and_one_that_is_none_are_told(job):
    (port,) = free_ports(1)
    with pytest.raises(ClusterError, match="no Ray dashboard answers there"):
        submit(job, address=f"http://127.0.0.1:{port}")
    for wrong in ("ray://127.0.0.1:10001", "127.0.0.1:8265", "auto"):
        with pytest.raises(
            ClusterError, match=r"must be the dashboard's http:// or https:// address"
        ):
            submit(job, address=wrong)


def test_a_faulty_job_is_told_before_any_cluster_is_asked(job):
    job.write_text("stages: {docs: {uses: data_pipelines.sources.python_dogs}}")
    with pytest.raises(SpecError, match="did you mean"):
        submit(job, address="http://127.0.0.1:1")


def test_the_runtime_environment_in_cluster_is_the_one_that_is_sent(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    written = yaml.safe_load((REPOSITORY / "cluster" / "runtime_env.yaml").read_text())
    written["py_modules"] = [str(Path(folder).resolve()) for folder in written["py_modules"]]
    assert written == runtime_env()
