from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("secret", "node_key", "signing_key", "proof", "version")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    secret: str
    node_key: bytes
    signing_key: bytes
    proof: bytes
    version: str
    def __init__(self, secret: _Optional[str] = ..., node_key: _Optional[bytes] = ..., signing_key: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., version: _Optional[str] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("institution", "sector", "role", "node_id", "coordinator_key", "version")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    SECTOR_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    institution: str
    sector: str
    role: str
    node_id: str
    coordinator_key: bytes
    version: str
    def __init__(self, institution: _Optional[str] = ..., sector: _Optional[str] = ..., role: _Optional[str] = ..., node_id: _Optional[str] = ..., coordinator_key: _Optional[bytes] = ..., version: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("version", "flower_version", "time", "institution", "role", "coordinator_key")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FLOWER_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_KEY_FIELD_NUMBER: _ClassVar[int]
    version: str
    flower_version: str
    time: str
    institution: str
    role: str
    coordinator_key: bytes
    def __init__(self, version: _Optional[str] = ..., flower_version: _Optional[str] = ..., time: _Optional[str] = ..., institution: _Optional[str] = ..., role: _Optional[str] = ..., coordinator_key: _Optional[bytes] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("node_key", "signing_key", "proof")
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    node_key: bytes
    signing_key: bytes
    proof: bytes
    def __init__(self, node_key: _Optional[bytes] = ..., signing_key: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class ProposeRequest(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: str
    def __init__(self, study: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("study_digest", "institution", "kind", "reason", "moment", "key", "signature")
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MOMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    study_digest: str
    institution: str
    kind: str
    reason: str
    moment: str
    key: bytes
    signature: bytes
    def __init__(self, study_digest: _Optional[str] = ..., institution: _Optional[str] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ..., moment: _Optional[str] = ..., key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class StudyState(_message.Message):
    __slots__ = ("study", "study_digest", "state", "proposer", "proposed_at", "decisions", "missing")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROPOSER_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_AT_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    study: str
    study_digest: str
    state: str
    proposer: str
    proposed_at: str
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, study: _Optional[str] = ..., study_digest: _Optional[str] = ..., state: _Optional[str] = ..., proposer: _Optional[str] = ..., proposed_at: _Optional[str] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class ListStudiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStudiesResponse(_message.Message):
    __slots__ = ("studies",)
    STUDIES_FIELD_NUMBER: _ClassVar[int]
    studies: _containers.RepeatedCompositeFieldContainer[StudyState]
    def __init__(self, studies: _Optional[_Iterable[_Union[StudyState, _Mapping]]] = ...) -> None: ...

class GetStudyRequest(_message.Message):
    __slots__ = ("study_digest",)
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    study_digest: str
    def __init__(self, study_digest: _Optional[str] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ...) -> None: ...

class GetResultsRequest(_message.Message):
    __slots__ = ("study_digest",)
    STUDY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    study_digest: str
    def __init__(self, study_digest: _Optional[str] = ...) -> None: ...

class GetResultsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: str
    def __init__(self, results: _Optional[str] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("author", "length", "hash", "signature")
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    author: str
    length: int
    hash: str
    signature: bytes
    def __init__(self, author: _Optional[str] = ..., length: _Optional[int] = ..., hash: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ExchangeHeadsRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: Head
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class ExchangeHeadsResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: Head
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class GetTranscriptRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TranscriptLines(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...

class SubmitStatementRequest(_message.Message):
    __slots__ = ("statement", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: str
    signature: bytes
    def __init__(self, statement: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SubmitStatementResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Statement(_message.Message):
    __slots__ = ("institution", "statement", "key", "signature", "received_at")
    INSTITUTION_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    institution: str
    statement: str
    key: bytes
    signature: bytes
    received_at: str
    def __init__(self, institution: _Optional[str] = ..., statement: _Optional[str] = ..., key: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., received_at: _Optional[str] = ...) -> None: ...

class ListStatementsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStatementsResponse(_message.Message):
    __slots__ = ("statements",)
    STATEMENTS_FIELD_NUMBER: _ClassVar[int]
    statements: _containers.RepeatedCompositeFieldContainer[Statement]
    def __init__(self, statements: _Optional[_Iterable[_Union[Statement, _Mapping]]] = ...) -> None: ...
