"""The study file to start from: the same for every task, but for the tables that its own brings.

A task's tables are in `tasks/NAME.toml`, beside its code. Text classification is as
`study_template.toml` has it.
"""

import re
from importlib.resources import files

from fedpact.common.errors import UsageError
from fedpact.common.task_section import KINDS

_HEADER = re.compile(r"^(?=\[)", re.MULTILINE)


def template(task: str = "text-classification") -> str:
    """A commented study file for a task.

    Raises:
        UsageError: there is no such task.
    """
    if task not in KINDS:
        raise UsageError(f"There is no task {task}.", advice=f"Take {', '.join(KINDS)}.")
    common = files("fedpact.common")
    text = common.joinpath("study_template.toml").read_text("utf-8")
    if task == "text-classification":
        return text
    theirs = common.joinpath("tasks", f"{task.replace('-', '_')}.toml").read_text("utf-8")
    tables = {_name(table): table for table in _HEADER.split(theirs) if table.startswith("[")}
    return (
        "".join(
            tables.get(_name(table), table).rstrip("\n") + "\n\n"
            for table in _HEADER.split(text)
        ).rstrip("\n")
        + "\n"
    )


def _name(table: str) -> str:
    return table.partition("]")[0]
