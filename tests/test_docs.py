"""The documentation says what the code says, and leads nowhere that is not there."""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from fedpact.client.policy import Policy
from fedpact.common.study import Study
from fedpact.server.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "client", "server", "simulations")
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / room / "README.md" for room in ROOMS),
    ]
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "docs_generate", ROOT / "docs" / "generate.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return _load_generator()


def _reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


def test_the_reference_is_what_the_code_says(generate: ModuleType) -> None:
    assert generate.different() == []


def test_a_page_that_differs_is_found(
    generate: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "policy.md").write_text("stale", encoding="utf-8")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.count("differs") == 1


def test_every_exit_code_is_documented(generate: ModuleType) -> None:
    page = _reference("exit-codes.md")
    kinds = generate.error_kinds()
    assert len({kind.exit_code for kind in kinds}) == len(kinds) > 10
    for kind in kinds:
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in page


def test_every_setting_is_documented() -> None:
    study = _reference("study.md")
    for name, section in Study.model_fields.items():
        assert f"[{name}]" in study
        model = next(
            kind
            for kind in (section.annotation, *getattr(section.annotation, "__args__", ()))
            if hasattr(kind, "model_fields")
        )
        chapter = study.partition(f"[{name}]")[2].partition("\n## ")[0]
        for key in model.model_fields:
            assert f"| `{key}` |" in chapter, f"{name}.{key}"
    for model, page in ((Policy, "policy.md"), (Settings, "server-settings.md")):
        for key in model.model_fields:
            assert f"| `{key}` |" in _reference(page), key


def test_every_environment_variable_is_documented(generate: ModuleType) -> None:
    sources = [
        path for folder in (*ROOMS, "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    sources += [ROOT / "tests" / "conftest.py", ROOT / "Makefile"]
    used = {
        name
        for path in sources
        for name in re.findall(r"\bFEDPACT_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert used == {name for name, _, _ in generate.ENVIRONMENT}
    page = _reference("environment.md")
    for name in used:
        assert f"`{name}`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page}: {target}"
        assert found.is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(found), f"{page}: {target}"


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def test_the_newest_version_in_the_changelog_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert versions[0] == project["version"]
    assert f"\n[{versions[0]}]: " in changelog or len(versions) == 1


def test_every_adr_is_listed_and_numbered_once() -> None:
    folder = ROOT / "docs" / "adr"
    records = sorted(path.name for path in folder.glob("0*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    listing = (folder / "README.md").read_text(encoding="utf-8")
    for name in records:
        assert f"({name})" in listing


def test_every_target_of_the_makefile_is_in_contributing() -> None:
    targets = re.findall(
        r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert targets
    for target in targets:
        assert f"`make {target}`" in contributing


@pytest.mark.parametrize("page", ["coordinator", "institution"])
def test_the_tutorials_show_the_digest_of_the_study_that_they_sign(page):
    tutorials = ROOT / "docs" / "tutorials"
    (toml,) = re.findall(
        r"^```toml\n(\[study\].*?)^```",
        (tutorials / "coordinator.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    digest = Study.model_validate(tomllib.loads(toml)).digest
    shown = (tutorials / f"{page}.md").read_text(encoding="utf-8")
    assert digest in shown
    # Shortened ones are of the same study.
    begun = re.findall(r"(?:digest |studies = \[\")([0-9a-f]{8})…", shown)
    assert begun == [digest[:8]]
    assert set(re.findall(r"\b[0-9a-f]{12}\b(?=`| │|\))", shown)) >= {digest[:12]}
