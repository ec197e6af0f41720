import io
import tomllib
import zipfile

from flwr.cli.config_utils import get_fab_config, get_fab_metadata
from flwr.cli.install import install_from_fab

from fedpact.server.fab import HOME_KEY, RUN_KEY, build_fab


def test_flower_installs_the_bundle(tmp_path):
    installed = install_from_fab(build_fab(), install_dir=tmp_path, skip_prompt=True)
    assert (installed / "fedpact_run" / "app.py").exists()
    assert get_fab_metadata(build_fab())[0] == "fedpact/fedpact-run"


def test_every_key_of_a_run_is_known_to_the_app():
    config = get_fab_config(build_fab())["tool"]["flwr"]["app"]["config"]
    assert config == {HOME_KEY: "", RUN_KEY: ""}


def test_the_same_fedpact_gives_the_same_bytes():
    assert build_fab() == build_fab()


def test_it_ships_nothing_but_a_shell():
    with zipfile.ZipFile(io.BytesIO(build_fab())) as archive:
        names = set(archive.namelist())
        assert names == {
            "pyproject.toml",
            "fedpact_run/__init__.py",
            "fedpact_run/app.py",
            ".info/CONTENT",
        }
        code = archive.read("fedpact_run/app.py").decode()
        project = tomllib.loads(archive.read("pyproject.toml").decode())
    assert len(code) < 1000
    assert "dependencies" not in project["project"]


def test_its_server_app_is_the_installed_one_and_its_client_app_refuses():
    with zipfile.ZipFile(io.BytesIO(build_fab())) as archive:
        code = archive.read("fedpact_run/app.py").decode()
    module: dict[str, object] = {}
    exec(compile(code, "app.py", "exec"), module)  # noqa: S102 - our own generated module
    from fedpact.server.app import app

    assert module["server"] is app
    try:
        module["refuse"](None, None)
    except RuntimeError as error:
        assert "fedpact client up" in str(error)  # noqa: PT017
