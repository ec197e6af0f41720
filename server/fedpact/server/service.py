"""The control plane's server: `fedpact.v1` over gRPC and TLS, on a port of its own.

Methods take a request and give a response; who calls is `doorkeeper.caller()`, and what is
wrong is raised as one of our errors. Every call has gone through the doorkeeper. Health and
reflection are served too, and need a signed call as all others.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy import Engine

from fedpact.common import certificates, possession
from fedpact.common.errors import AddressError, RunError, TrustError
from fedpact.common.identity import SigningKey, public_bytes
from fedpact.common.invitation import join_address, secret_sha256
from fedpact.common.signed_calls import MAX_MESSAGE
from fedpact.common.v1 import federation_pb2 as pb
from fedpact.common.v1 import federation_pb2_grpc as rpc
from fedpact.common.version import fedpact_version
from fedpact.server import heads, institutions, pact_service, statements
from fedpact.server.control import Control
from fedpact.server.doorkeeper import Doorkeeper, caller
from fedpact.server.institutions import Keys
from fedpact.server.listener import bind
from fedpact.server.tables import transaction

log = logging.getLogger(__name__)

_THREADS = 16
_CONCURRENT_CALLS = 64
_STREAMS_PER_CONNECTION = 16
_SERVICES = (
    "fedpact.v1.Federation",
    "grpc.health.v1.Health",
    reflection.SERVICE_NAME,
)


@dataclass(frozen=True)
class Plane:
    """What the control plane works with.

    Attributes:
        engine: the coordinator's database.
        key: the coordinator's signing key.
        control: opens a connection to SuperLink's Control API.
        keys_changed: told whenever an institution's keys have changed.
    """

    engine: Engine
    key: SigningKey
    control: Callable[[], AbstractContextManager[Control]]
    keys_changed: Callable[[], None]


class Federation(rpc.FederationServicer):
    """The methods of `fedpact.v1.Federation`."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def Join(self, request: pb.JoinRequest, _context: object) -> pb.JoinResponse:  # noqa: N802
        """Let an institution in that was invited."""
        binding = secret_sha256(request.secret).encode()
        possession.check(request.signing_key, request.node_key, binding, request.proof)
        if request.node_key:
            certificates.parse_public_key(request.node_key)
        keys = Keys(request.node_key, request.signing_key)
        with transaction(self._plane.engine) as session:
            row = institutions.accept(session, request.secret, keys, self._register)
            answer = pb.JoinResponse(
                institution=row.name,
                sector=row.sector,
                role=row.role,
                node_id=row.node_id or "",
                coordinator_key=public_bytes(self._plane.key),
                version=fedpact_version(),
            )
        self._plane.keys_changed()
        log.info("%s (%s) has joined", answer.institution, answer.role)
        return answer

    def Status(self, _request: pb.StatusRequest, _context: object) -> pb.StatusResponse:  # noqa: N802
        """Who the coordinator is, what it runs, what its clock says."""
        return pb.StatusResponse(
            version=fedpact_version(),
            flower_version=version("flwr"),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            institution=caller().institution,
            role=caller().role,
            coordinator_key=public_bytes(self._plane.key),
        )

    def Rotate(self, request: pb.RotateRequest, _context: object) -> pb.RotateResponse:  # noqa: N802
        """Change an institution's keys; signed with the old ones."""
        asks = caller()
        possession.check(request.signing_key, request.node_key, asks.key, request.proof)
        if request.node_key:
            certificates.parse_public_key(request.node_key)
        keys = Keys(request.node_key, request.signing_key)
        with transaction(self._plane.engine) as session:
            row, before = institutions.rotate(session, asks.key, keys, self._register)
            node_id = row.node_id or ""
        self._plane.keys_changed()
        log.info("%s has changed its keys", asks.institution)
        if before is not None:
            self._unregister(before)
        return pb.RotateResponse(node_id=node_id)

    def Propose(self, request: pb.ProposeRequest, _context: object) -> pb.StudyState:  # noqa: N802
        """Propose a study to the institutions that it names."""
        return pact_service.propose(self._plane.engine, caller().institution, request)

    def ListStudies(  # noqa: N802
        self, _request: pb.ListStudiesRequest, _context: object
    ) -> pb.ListStudiesResponse:
        """The studies that concern the caller."""
        who = caller()
        return pact_service.list_studies(self._plane.engine, who.institution, who.role)

    def GetStudy(self, request: pb.GetStudyRequest, _context: object) -> pb.StudyState:  # noqa: N802
        """One study, with every decision on it."""
        who, digest = caller(), request.study_digest
        return pact_service.get_study(self._plane.engine, who.institution, who.role, digest)

    def Decide(self, request: pb.DecideRequest, _context: object) -> pb.StudyState:  # noqa: N802
        """Approve, refuse or withdraw; for an auditor, consent or veto."""
        return pact_service.decide(self._plane.engine, caller().institution, request)

    def GetResults(  # noqa: N802
        self, request: pb.GetResultsRequest, _context: object
    ) -> pb.GetResultsResponse:
        """The runs of a study."""
        who, digest = caller(), request.study_digest
        return pact_service.get_results(self._plane.engine, who.institution, who.role, digest)

    def ExchangeHeads(  # noqa: N802
        self, request: pb.ExchangeHeadsRequest, _context: object
    ) -> pb.ExchangeHeadsResponse:
        """Show one's transcript's head, see the coordinator's."""
        who = caller()
        ours = heads.exchange(self._plane.engine, who.institution, who.key, request.head)
        return pb.ExchangeHeadsResponse(head=ours)

    def GetTranscript(  # noqa: N802
        self, _request: pb.GetTranscriptRequest, _context: object
    ) -> Iterator[pb.TranscriptLines]:
        """The coordinator's transcript."""
        return heads.transcript(self._plane.engine)

    def SubmitStatement(  # noqa: N802
        self, request: pb.SubmitStatementRequest, _context: object
    ) -> pb.SubmitStatementResponse:
        """A site's signed statement of what its data sets have spent."""
        who, text = caller(), request.statement
        statements.submit(self._plane.engine, who.institution, who.key, text, request.signature)
        return pb.SubmitStatementResponse()

    def ListStatements(  # noqa: N802
        self, _request: pb.ListStatementsRequest, _context: object
    ) -> pb.ListStatementsResponse:
        """The newest statement of each institution."""
        with transaction(self._plane.engine) as session:
            return pb.ListStatementsResponse(
                statements=[
                    pb.Statement(
                        institution=row.institution,
                        statement=row.text,
                        key=row.key,
                        signature=row.signature,
                        received_at=row.received_at.isoformat(),
                    )
                    for row in statements.newest(session)
                ]
            )

    def _register(self, node_key: bytes) -> int:
        with self._plane.control() as control:
            return control.register_node(node_key)

    def _unregister(self, node: int) -> None:
        try:
            with self._plane.control() as control:
                control.unregister_node(node)
        except (AddressError, RunError) as error:
            # Its key is refused at the gateway all the same; SuperLink is told when it starts.
            log.warning("node %d is still registered: %s", node, error)


class Service:
    """The server; it takes its port when it is made, and serves from `start` to `stop`."""

    def __init__(
        self,
        servicer: Federation,
        doorkeeper: Doorkeeper,
        listen: tuple[str, int],
        chain: Path,
        key: Path,
    ) -> None:
        """Take the port.

        Args:
            servicer: the methods.
            doorkeeper: what every call goes through.
            listen: the address of this machine and the port (0: any that is free).
            chain: the server's certificate and its CA's, PEM.
            key: the server's private key, PEM.

        Raises:
            AddressError: the port is in use, or the address is not this machine's.
            TrustError: certificate or key cannot be used.
        """
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="service"),
            interceptors=[doorkeeper],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
            ],
            maximum_concurrent_rpcs=_CONCURRENT_CALLS,
        )
        rpc.add_FederationServicer_to_server(  # type: ignore[no-untyped-call] # generated code
            servicer, self._server
        )
        self._health = health.HealthServicer(experimental_non_blocking=False)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(_SERVICES, self._server)
        bind(*listen).close()  # gRPC does not say why it cannot
        address = join_address(*listen)
        try:
            self.port = self._server.add_secure_port(address, _credentials(chain, key))
        except RuntimeError as error:
            raise AddressError(f"The coordinator cannot listen on {address}.") from error

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._server.start()

    def stop(self, grace: float = 1.0) -> None:
        """Stop; calls that are being served get so many seconds."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()


def _credentials(chain: Path, key: Path) -> grpc.ServerCredentials:
    """TLS with the certificate that lies in the files at each handshake."""
    return grpc.dynamic_ssl_server_credentials(
        _configuration(chain, key),
        _Renewed(chain, key).changed,  # type: ignore[arg-type] # None: as it was
        require_client_authentication=False,
    )


def _configuration(chain: Path, key: Path) -> grpc.ServerCertificateConfiguration:
    try:
        pair = (key.read_bytes(), chain.read_bytes())
    except OSError as error:
        raise TrustError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return grpc.ssl_server_certificate_configuration([pair])


class _Renewed:
    """Watches the certificate's files; both must fit before they are used."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._seen = chain.stat().st_mtime_ns

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None: what is in use."""
        try:
            written = self._chain.stat().st_mtime_ns
            if written == self._seen:
                return None
            certificates.check_pair(self._chain, self._key)
            configuration = _configuration(self._chain, self._key)
        except (OSError, TrustError) as error:
            log.warning("the new certificate cannot be used yet: %s", error)
            return None
        self._seen = written
        return configuration
