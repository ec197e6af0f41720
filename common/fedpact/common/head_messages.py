"""Heads as they travel over the control plane."""

from fedpact.common.errors import WireError
from fedpact.common.transcript import Head, canonical
from fedpact.common.v1 import federation_pb2 as pb


def head_message(head: Head) -> pb.Head:
    """A head as a message."""
    return pb.Head(
        author=head.author,
        length=head.length,
        hash=head.hash,
        signature=bytes.fromhex(head.signature),
    )


def head_of(message: pb.Head) -> Head:
    """Read a head that another party sent; who signed it is another question.

    Raises:
        WireError: it is not a head.
    """
    try:
        return Head.parse(
            canonical(
                {
                    "author": message.author,
                    "length": message.length,
                    "hash": message.hash,
                    "signature": message.signature.hex(),
                }
            )
        )
    except ValueError as error:
        raise WireError(f"This is not a transcript's head: {error}.") from error
