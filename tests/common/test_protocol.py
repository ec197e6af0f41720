"""The control plane's protocol: what is checked in is what its `.proto` says."""

from pathlib import Path

import pytest

from fedpact.common import v1

FOLDER = Path(v1.__file__).parent
GENERATED = ("federation_pb2.py", "federation_pb2.pyi", "federation_pb2_grpc.py")


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is a dev extra")
    out = tmp_path_factory.mktemp("proto")
    root, name = FOLDER.parents[2], "fedpact/common/v1/federation.proto"
    options = (f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    assert protoc.main(["protoc", f"-I{root}", *options, name]) == 0
    return out / "fedpact" / "common" / "v1"


@pytest.mark.parametrize("name", GENERATED)
def test_the_generated_code_is_that_of_the_protocol(again, name):
    assert (again / name).read_text() == (FOLDER / name).read_text(), "run `make proto`"
