"""The Flower app bundle (FAB) that SuperLink asks for: a shell around the installed fedpact.

Flower ships an app's code to whoever runs it. Ours ships none: its ServerApp is the one that
the coordinator has installed, and its ClientApp refuses, because sites run only the code
that they installed themselves.

The format is a zip archive with a manifest of hashes at `.info/CONTENT`, as `flwr build`
writes it. The same fedpact gives the same bytes, so that Flower installs it once.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from importlib.metadata import version

# What a run is told; SuperLink takes no key that the app itself does not name.
HOME_KEY = "fedpact-home"
RUN_KEY = "fedpact-run"

_DATE = (1980, 1, 1, 0, 0, 0)
_PROJECT = """\
[project]
name = "fedpact-run"
version = "{version}"
description = "One execution of a study"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedpact"

[tool.flwr.app.components]
serverapp = "fedpact_run.app:server"
clientapp = "fedpact_run.app:client"

[tool.flwr.app.config]
{home_key} = ""
{run_key} = ""
"""
_APP = '''\
"""The installed coordinator's ServerApp; and a ClientApp that refuses."""

from flwr.clientapp import ClientApp

from fedpact.server.app import app as server
from fedpact.server.superlink import end_with_parent

end_with_parent()
client = ClientApp()


@client.train()
def refuse(message, context):
    """Sites run the fedpact that they installed, never shipped code."""
    raise RuntimeError("Run `fedpact client up` instead of a Flower SuperNode.")
'''


def build_fab() -> bytes:
    """The bundle for a run of ours."""
    project = _PROJECT.format(version=version("flwr"), home_key=HOME_KEY, run_key=RUN_KEY)
    return bundle(
        {
            "pyproject.toml": project,
            "fedpact_run/__init__.py": "",
            "fedpact_run/app.py": _APP,
        }
    )


def bundle(files: Mapping[str, str]) -> bytes:
    """Files by path as a FAB; the same files give the same bytes."""
    manifest = "\n".join(
        f"{path},{hashlib.sha256(content.encode()).hexdigest()},{8 * len(content.encode())}"
        for path, content in files.items()
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (*files.items(), (".info/CONTENT", manifest)):
            archive.writestr(zipfile.ZipInfo(path, _DATE), content)
    return buffer.getvalue()
