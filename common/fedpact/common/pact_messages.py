"""Decisions as the control plane carries them: the fields that are signed, and no others."""

import json

from pydantic import ValidationError

from fedpact.common.agreement import Decision
from fedpact.common.errors import WireError
from fedpact.common.v1 import federation_pb2 as pb


def decision_message(decision: Decision) -> pb.Decision:
    """A decision as a message."""
    fields = decision.model_dump(mode="json")
    return pb.Decision(
        study_digest=decision.study_digest,
        institution=decision.institution,
        kind=decision.kind,
        reason=decision.reason,
        moment=fields["moment"],
        key=bytes.fromhex(decision.key),
        signature=bytes.fromhex(decision.signature),
    )


def decision_of(message: pb.Decision) -> Decision:
    """A decision that another party sent; its signature is not checked here.

    Raises:
        WireError: it is not a decision.
    """
    fields = {
        "study_digest": message.study_digest,
        "institution": message.institution,
        "kind": message.kind,
        "reason": message.reason,
        "moment": message.moment,
        "key": message.key.hex(),
        "signature": message.signature.hex(),
    }
    try:
        return Decision.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise WireError("The message is not a decision on a study.") from error
