"""How log lines look, and what they say they are about, in processes of their own."""

import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from fedpact.common import logs

PROGRAM = """
import logging
import warnings
from fedpact.common import logs

logs.configure()
log = logging.getLogger("fedpact.somewhere")
log.debug("detail")
log.info("before")
with logs.about(study="abc", run="r1", site="Klinik Süd"):
    with logs.about(round=3):
        log.warning("line one\\nline two")
    log.info("no round")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it broke")
log.info("after")
warnings.warn("an old name", FutureWarning)
for library in ("httpx", "alembic.runtime.migration", "uvicorn.error"):
    logging.getLogger(library).info("chatter of %s", library)
    logging.getLogger(library).warning("trouble of %s", library)
"""


def run(**env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FEDPACT_LOG")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **env},
    )


def test_json_lines_say_what_they_are_about():
    done = run(FEDPACT_LOG_FORMAT="json")
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    by_message = {line["message"]: line for line in lines}
    about = {"study": "abc", "run": "r1", "site": "Klinik Süd"}
    inner = by_message["line one\nline two"]
    assert inner.pop("time").endswith("+00:00")
    assert inner == {
        "level": "WARNING",
        "logger": "fedpact.somewhere",
        "message": "line one\nline two",
        "round": 3,
        **about,
    }
    assert "round" not in by_message["no round"]
    assert by_message["no round"]["run"] == "r1"
    assert by_message["it broke"]["exception"].endswith("ValueError: why")
    for message in ("before", "after"):
        assert not about.keys() & by_message[message].keys()


def test_text_is_the_default_and_libraries_speak_only_of_trouble():
    lines = run().stderr.splitlines()
    assert lines[0].endswith("INFO fedpact.somewhere: before")
    assert not [line for line in lines if "chatter" in line or "detail" in line]
    assert sum("trouble of" in line for line in lines) == 3
    assert not [line for line in lines if "an old name" in line]


def test_the_level_is_chosen():
    detailed = run(FEDPACT_LOG_LEVEL="debug").stderr
    assert "DEBUG fedpact.somewhere: detail" in detailed
    assert "an old name" in detailed
    assert "INFO" not in run(FEDPACT_LOG_LEVEL="WARNING").stderr


def test_a_file_takes_the_place_of_what_was_set_up_before(tmp_path):
    program = """
import logging, sys
from pathlib import Path
from fedpact.common import logs

logging.basicConfig()
logs.configure(Path(sys.argv[1]))
logging.getLogger("fedpact.somewhere").info("hello")
"""
    path = tmp_path / "run.log"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert path.read_text().endswith("INFO fedpact.somewhere: hello\n")


@pytest.mark.parametrize("variable", ["FEDPACT_LOG_FORMAT", "FEDPACT_LOG_LEVEL"])
def test_what_cannot_be_chosen_is_said(variable):
    done = run(**{variable: "loud"})
    assert done.returncode != 0
    assert f"{variable} is 'loud'. It can be " in done.stderr


def test_another_thread_has_its_own_subject():
    lines = []

    def write() -> None:
        lines.append(json.loads(logs.JsonLines().format(logging.makeLogRecord({"msg": "hi"}))))

    with logs.about(run="r1"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        write()
    assert [line.get("run") for line in lines] == [None, "r1"]
