"""The command line as a whole: quick to start, and every error in a sentence."""

import logging
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from fedpact.common import errors
from fedpact.common.errors import FedpactError
from fedpact.simulations import cli
from support.federation import fedpact
from support.tiny_bert import write_data

HEAVY = (
    "torch",
    "transformers",
    "flwr",
    "sqlalchemy",
    "cryptography",
    "pydantic",
    "peft",
    "opacus",
    "datasets",
)
VERBS = (
    (),
    ("demo",),
    ("simulate",),
    ("study",),
    ("study", "check"),
    ("server",),
    ("server", "up"),
    ("run",),
    ("run", "start"),
    ("client",),
    ("client", "up"),
    ("client", "dataset", "add"),
    ("audit",),
    ("audit", "verify"),
)
_ASK = f"""
import sys
from fedpact.simulations.cli import main
for verb in {VERBS!r}:
    sys.argv = ["fedpact", *verb, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, verb
print("loaded:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""


def test_help_is_there_for_every_verb_and_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", _ASK], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def ends_with(done, code: int, sentence: str) -> None:
    """It ended with this code and one sentence that says why, and maybe one what to do."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    first, *rest = done.stderr.strip().splitlines()
    assert first.startswith("fedpact: ")
    assert re.search(sentence, first), first
    assert len(rest) <= 1


BAD = """\
[study]
name = "x"
[task]
labels = ["a", "b"]
[model]
base = "somewhere"
[privacy]
target_epsilonn = 1.0
"""
CASES = {
    "an unknown study": (("study", "check", "nowhere.toml"), 10, "no study file nowhere.toml"),
    "a study to run that is not there": (("run", "start", "nowhere.toml"), 10, "no study file"),
    "a simulation of nothing": (("simulate", "nowhere.toml"), 10, "no study file nowhere.toml"),
    "a comparison on Ray": (
        ("simulate", "nowhere.toml", "--compare", "adapter.r=1,2", "--grid", "ray"),
        2,
        "this machine's own processes",
    ),
    "a comparison with each site alone": (
        ("simulate", "nowhere.toml", "--compare", "adapter.r=1,2", "--alone", "plain"),
        2,
        "trains no site alone",
    ),
    "test records for a comparison": (
        ("simulate", "nowhere.toml", "--tune", "adapter.r=1,2", "--test", "test.csv"),
        2,
        "trains no site alone",
    ),
    "test records for nothing": (
        ("simulate", "nowhere.toml", "--test", "test.csv"),
        2,
        "--test is for --alone",
    ),
    "a run without a coordinator": (("run", "list"), 2, "no coordinator in"),
    "a run to watch": (("run", "watch", "x"), 2, "no coordinator in"),
    "a run to stop": (("run", "stop", "x"), 2, "no coordinator in"),
    "a coordinator that was not made": (("server", "up"), 2, "no coordinator in"),
    "a site that has not joined": (("client", "up"), 17, "has not joined"),
    "a token that is none": (("client", "join", "fedpact1-abc"), 17, "damaged"),
    "data that are not there": (
        ("client", "dataset", "add", "x", "nowhere.csv"),
        11,
        "no file",
    ),
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line in this process, in an empty folder; `main` itself decides the code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for room in ("server", "client"):
        monkeypatch.setenv(f"FEDPACT_{room.upper()}_HOME", str(tmp_path / room))
    # What a command sets up for itself must not leak into other tests.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def invoke(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedpact", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return Done(code, *capsys.readouterr())

    return invoke


@pytest.mark.parametrize("case", CASES)
def test_what_goes_wrong_ends_in_a_sentence_and_its_code(case, run):
    arguments, code, sentence = CASES[case]
    ends_with(run(*arguments), code, sentence)


def test_a_process_ends_so_too(tmp_path):
    done = fedpact("study", "check", str(tmp_path / "nowhere.toml"))
    ends_with(done, 10, "no study file")
    assert done.stdout == ""


def test_a_bad_study_is_told_line_by_line(run, tmp_path):
    (tmp_path / "bad.toml").write_text(BAD)
    for verb in (("study", "check"), ("simulate",)):
        done = run(*verb, "bad.toml")
        assert done.returncode == 10
        assert "line 8: privacy.target_epsilonn: there is no such key" in done.stderr
        assert "did you mean `target_epsilon`" in done.stderr


def test_a_folder_that_cannot_be_written_is_said(run, tiny, tmp_path):
    write_data(tmp_path / "data.csv")
    tiny.write_study(tmp_path / "study.toml")
    (tmp_path / "file").touch()
    ends_with(run("simulate", "study.toml", "--folder", "file/run"), 18, "cannot be")


def test_a_comparison_of_which_a_part_fails_is_told_whole_and_ends_with_its_code(
    run, tiny, tmp_path
):
    write_data(tmp_path / "data.csv")
    write_data(tmp_path / "public.csv", records=40)
    tiny.write_study(
        tmp_path / "study.toml",
        training={"rounds": 1},
        institutions=[],
        evaluation={"data": "public.csv"},
    )
    compared = ("--compare", "privacy.target_delta=0.5,1e-5", "--seeds", "1", "--sites", "2")
    done = run("simulate", "study.toml", *compared)
    assert done.returncode == 19
    assert "1 of the comparison's simulations failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "one over the records of site-01" in done.stdout.replace("\n", " ")
    assert (tmp_path / "fedpact-simulations" / "tiny-compared" / "report.html").is_file()


def test_ctrl_c_ends_with_the_code_that_shells_give_it(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert run() == Done(130, "", "fedpact: stopped.\n")


def test_a_study_of_the_template_is_valid(run):
    assert run("study", "new", "mine.toml").returncode == 0
    assert run("study", "check", "mine.toml").returncode == 0
    ends_with(run("study", "new", "mine.toml"), 10, "exists already")


def test_what_is_mistyped_is_said_by_typer(run):
    done = run("serve")
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_every_error_has_a_code_of_its_own_that_is_written_down():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, FedpactError)
    ]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert len(set(codes.values())) == len(codes) > 10
    for name, code in codes.items():
        assert re.search(rf"{name}\s+{code}\b", errors.__doc__), name
