"""No seed reaches sampling or noise but by one switch, which is said aloud and forbidden at first."""

import ast
from pathlib import Path

import pytest

from fedpact.client.agreements import Agreements
from fedpact.client.datasets import Datasets
from fedpact.client.home import ClientHome
from fedpact.client.metrics import ClientMetrics, MeteredWorkbench
from fedpact.client.up import INSECURE_SEED, build_site, insecure_randomness
from fedpact.common import identity, wire
from fedpact.common import model as models
from fedpact.common.errors import UsageError
from support.site_factory import INSTITUTION, join_on_paper, receipts, update_request
from support.tiny_bert import write_data

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for room in ("client", "common") for path in (ROOT / room).rglob("*.py")]
# Where a generator with a seed may be made, and what for.
SEEDED = {
    ("up.py", "insecure_randomness"),  # the switch
    ("selftest.py", "_weights"),  # an adapter for invented records
    ("model.py", "initial_weights"),  # the adapter's first values, the same for everyone
    ("adapter.py", "first_values"),  # which are drawn here
    ("masking.py", "draw"),  # which words are hidden: no promise hangs on it
    ("image_classification.py", "invented_files"),  # of a self-test
    ("audio_classification.py", "invented_files"),
}
GLOBAL = {"manual_seed", "seed_all", "fork_rng", "set_rng_state", "Generator", "normal_"}
GLOBAL |= {
    "uniform_",
    "bernoulli_",
    "bernoulli",
    "multinomial",
    "normal",
    "randint",
    "randperm",
}
GLOBAL |= {"rand", "randn", "rand_like", "randn_like", "RandomState", "default_rng"}


def functions(tree: ast.Module):
    """Each node with the name of the outermost function or class method that it stands in."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            here = inside
            if not here and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                here = child.name
            yield child, here
            yield from walk(child, here)

    return walk(tree, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_at_a_site_reaches_a_generator_that_a_seed_could_set(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, inside in functions(tree):
        match node:
            case ast.Import(names=names):
                modules = {name.name for name in names}
            case ast.ImportFrom(module=module, names=names):
                modules = {module or "", *(f"{module}.{name.name}" for name in names)}
            case ast.Attribute(attr=attr) if attr in GLOBAL:
                assert (path.name, inside) in SEEDED, f"{path}:{node.lineno}: {attr}"
                continue
            case _:
                continue
        assert not modules & {"random", "numpy.random", "torch.random"}, f"{path}:{node.lineno}"
        assert not any(name.startswith(("random.", "numpy.random.")) for name in modules)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_studys_seed_goes_into_the_adapters_first_values_and_nowhere_else(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "seed"]
    given = [
        argument
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).rpartition(".")[2] == "initial_weights"
        for argument in call.args
    ]
    assert [node for node in read if node not in given] == []


def site(folder, study, seed: str | None, monkeypatch, rule: str = ""):
    """A site as the daemon builds it, with the switch set."""
    monkeypatch.delenv(INSECURE_SEED, raising=False)
    if seed is not None:
        monkeypatch.setenv(INSECURE_SEED, seed)
    home = ClientHome(folder)
    Datasets(home.open_database()).add("notes", write_data(folder / "notes.csv"))
    key = identity.new_signing_key()
    join_on_paper(home, key)
    Agreements(home.open_database()).decide(key, INSTITUTION, study, "approve")
    home.policy.write_text(f"allow_model_folders = true\n{rule}", encoding="utf-8")
    workbench = MeteredWorkbench(ClientMetrics(), insecure_randomness())
    weights = models.initial_weights(workbench.model(study).module, 0)
    reply = build_site(home, INSTITUTION, workbench).answer(update_request(study, weights))
    return home, *wire.unpack(reply)


def test_by_default_a_site_with_a_seed_does_not_train(tmp_path, tiny, monkeypatch, caplog):
    home, header, array = site(tmp_path, tiny.study(), "7", monkeypatch)
    assert (header.code, array) == ("policy", None)
    assert "seed" not in header.reason.lower()
    assert receipts(home) == []
    assert "INSECURE: FEDPACT_INSECURE_SEED is set" in caplog.text


def test_where_it_is_allowed_it_repeats_a_round_and_every_receipt_says_so(
    tmp_path, tiny, monkeypatch, caplog
):
    allowed, study = "allow_insecure_seed = true\n", tiny.study()
    changes = []
    for number, seed in enumerate(("7", "7", "8", None)):
        home, _, change = site(tmp_path / str(number), study, seed, monkeypatch, allowed)
        changes.append(change.to_bytes())
        (receipt,) = receipts(home)
        assert receipt.body.get("insecure_seed", False) is (seed is not None)
    assert changes[0] == changes[1]
    assert len(set(changes)) == 3
    assert caplog.text.count("INSECURE: noise comes from a seed, and no ε holds") == 3


def test_a_seed_that_is_no_number_is_said(monkeypatch):
    monkeypatch.setenv(INSECURE_SEED, "7 or 8")
    with pytest.raises(UsageError):
        insecure_randomness()
