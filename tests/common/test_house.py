"""The house itself: four rooms of one namespace, and what is packed of them."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("common", "client", "server", "simulations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_claims_the_namespace_for_itself(room):
    """An `__init__.py` here would hide the other three rooms."""
    namespace = ROOT / room / "fedpact"
    assert [path.name for path in namespace.iterdir() if path.name != "__pycache__"] == [room]
    assert (namespace / room / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_every_package_is_one_and_every_room_is_typed(room):
    package = ROOT / room / "fedpact" / room
    assert (package / "py.typed").exists()
    folders = {path.parent for path in package.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_holds_the_four_rooms_and_nothing_beside_them():
    build = PROJECT["tool"]["hatch"]["build"]
    assert build["dev-mode-dirs"] == ["common", "server", "client", "simulations"]
    wheel = build["targets"]["wheel"]
    assert sorted(wheel["only-include"]) == sorted(f"{room}/fedpact" for room in ROOMS)
    assert sorted(wheel["sources"]) == sorted(ROOMS)


def test_the_wheels_files_are_those_of_the_tree():
    """What hatch itself says it would pack, data files too."""
    builder = WheelBuilder(str(ROOT))
    packed = {
        file.distribution_path
        for file in builder.recurse_included_files()
        if "__pycache__" not in file.distribution_path
    }
    expected = {
        str(path.relative_to(ROOT / room))
        for room in ROOMS
        for path in (ROOT / room / "fedpact").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.replace(os.sep, "/") for path in packed} == expected
    assert "fedpact/client/policy_template.toml" in packed


def test_the_rooms_know_each_other_one_way_only():
    (contract,) = PROJECT["tool"]["importlinter"]["contracts"]
    assert contract["layers"] == ["simulations", "server | client", "common"]
    assert contract["exhaustive"] is True


def test_flower_is_pinned_to_what_the_node_was_tested_with():
    assert "flwr~=1.41.0" in PROJECT["project"]["dependencies"]


def imports_of(path: Path) -> list[str]:
    found = []
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found.extend(name.name for name in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            found.append(statement.module or "")
    return found


def test_flower_is_met_in_three_places_only():
    """The server's app and control, the site's node, the simulations' grids."""
    knowing = {
        str(path.relative_to(ROOT / room / "fedpact"))
        for room in ROOMS
        for path in (ROOT / room / "fedpact").rglob("*.py")
        if any(name.split(".")[0] == "flwr" for name in imports_of(path))
    }
    assert knowing == {
        "client/node.py",
        "server/app.py",
        "server/control.py",
        "simulations/grid.py",
        "simulations/ray.py",
    }


def test_importing_every_module_does_nothing_else():
    """No module prints, logs or fails when it is imported alone."""
    modules = sorted(
        ".".join(path.relative_to(ROOT / room).with_suffix("").parts).removesuffix(".__init__")
        for room in ROOMS
        for path in (ROOT / room / "fedpact").rglob("*.py")
        if "migrations" not in path.parts and path.name != "__main__.py"
    )
    assert len(modules) > 50
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *modules],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
