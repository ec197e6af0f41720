"""Methods that add to the frozen weights, and adapters of unlike ranks, from end to end."""

from io import StringIO

import numpy as np
import peft
import pytest
import torch
from rich.console import Console

from fedpact.client.worth import Bench, read_records
from fedpact.common import base_models, tabular, tasks
from fedpact.common.worth import read_worth
from fedpact.simulations.federation import seeded_workbench
from fedpact.simulations.simulate import Simulation, simulate
from support.tiny_bert import write_data

RANKS = (1, 4, 2)
BOTH = pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
CPU = torch.device("cpu")


@pytest.fixture
def run(tiny, tmp_path):
    """Simulate two rounds; the view of the run, and its folder."""
    write_data(tmp_path / "public.csv", records=60, seed=99)
    write_data(tmp_path / "data.csv", records=180)

    def simulated(method, ranks, mechanism, rounds=2, alone="no"):
        institutions = [
            {"name": f"I{n}", "sector": "academia", "records": 60, **({"r": r} if r else {})}
            for n, r in enumerate(ranks)
        ]
        file = tiny.write_study(
            tmp_path / "study.toml",
            adapter={"r": 4, "lora_alpha": 8},
            training={"rounds": rounds},
            privacy={"mechanism": mechanism},
            aggregation={"method": method},
            evaluation={"data": "public.csv"},
            institutions=institutions,
        )
        folder = tmp_path / f"{method}-{mechanism}"
        asked = Simulation(study=file, sites=len(ranks), folder=folder, alone=alone)
        return *simulate(asked, Console(file=StringIO())), folder

    return simulated


@BOTH
@pytest.mark.parametrize(
    ("method", "ranks"),
    [
        ("fedex-lora", (None,) * 3),
        ("flora", RANKS),
        ("flexlora", RANKS),
        ("hetlora", RANKS),
    ],
)
def test_a_run_ends_with_an_adapter_that_plain_peft_loads(
    run, tmp_path, method, ranks, mechanism
):
    result, view, _ = run(method, ranks, mechanism)
    assert (result.status, [r.sites for r in result.rounds]) == ("completed", [3, 3])
    spent = [site.epsilon for site in result.sites]
    assert all(0.98 * 8 < e <= 8 for e in spent) if mechanism == "dp-sgd" else not any(spent)
    # What was released is what was measured, on the base model as it was published.
    study = view.study
    task = tasks.for_study(study)
    base = task.model_class().from_pretrained(study.model.base, **task.model_config())
    released = peft.PeftModel.from_pretrained(base, result.adapter).eval()
    table = tabular.read(tmp_path / "public.csv")
    rows = tabular.rows_for(table, task, tmp_path / "public.csv", public=True)
    records = task.encode(base_models.load_tokenizer(study), rows, study.training.max_length)
    batch = records.collate(np.arange(len(records)), pad_id=0, device=CPU)
    with torch.no_grad():
        losses, _ = task.loss(released, batch)
    assert float(losses.mean()) == pytest.approx(result.rounds[-1].loss, abs=1e-5)


@pytest.mark.parametrize("method", ["flora", "flexlora", "hetlora"])
def test_each_site_is_compared_with_itself_alone_at_its_own_rank(run, method):
    result, view, folder = run(method, RANKS, "none", alone="plain")
    sites = read_worth(folder).sites
    # What is shared is what was released, of whatever rank.
    shared = [site.public.shared.score for site in sites]
    assert shared == pytest.approx([result.rounds[-1].accuracy] * 3)
    study, workbench = view.study, seeded_workbench(0)
    records = read_records(folder.parent / "data.csv", study, workbench)
    first = workbench.model(study).first
    for one in study.institutions:
        alone = Bench(study, one.name, workbench, records).alone(private=False)
        assert alone.manifest == first.manifest.of_rank(one.r)
