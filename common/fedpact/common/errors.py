"""Everything that fedpact raises on purpose, and the exit code each ends a command with.

    FedpactError                1   something went wrong (never raised itself)
    ├── UsageError              2   the command line does not fit together
    ├── StudyError              10  the study file is wrong
    ├── DataError               11  a data file or data set cannot be used
    ├── ModelError              12  the base model is missing, altered or unsafe
    ├── WireError               13  a message does not fit the study or is damaged
    ├── BudgetError             14  the privacy budget does not allow it
    ├── PolicyError             15  the site's own policy does not allow it
    ├── AddressError            16  a port is in use or an address cannot be reached
    ├── TrustError              17  a certificate, key or token is not valid
    ├── StorageError            18  the disk or the database cannot be written
    ├── RunError                19  a run cannot go on (too few updates, unknown run)
    ├── TrainingError           20  training did not do what it must (the self-test failed)
    └── AuditError              21  a transcript is not whole, or contradicts another

Each message is one sentence that says what is wrong; `advice`, where given, is one that
says what to do next. The command line prints both and never a traceback. Where the message
holds what only this machine should know (a path, what other studies have spent), `told` is
the sentence that may leave in its place.
"""

from typing import ClassVar


class FedpactError(Exception):
    """The root of all errors that fedpact raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, advice: str = "", told: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.told = told

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class UsageError(FedpactError):
    """The command line does not fit together."""

    exit_code = 2


class StudyError(FedpactError):
    """The study file is wrong."""

    exit_code = 10


class DataError(FedpactError):
    """A data file or data set cannot be used."""

    exit_code = 11


class ModelError(FedpactError):
    """The base model is missing, altered or unsafe to load."""

    exit_code = 12


class WireError(FedpactError):
    """A message does not fit the study or is damaged."""

    exit_code = 13


class BudgetError(FedpactError):
    """The privacy budget does not allow what is asked."""

    exit_code = 14


class PolicyError(FedpactError):
    """The site's own policy does not allow what is asked."""

    exit_code = 15


class AddressError(FedpactError):
    """A port is in use or an address cannot be reached."""

    exit_code = 16


class TrustError(FedpactError):
    """A certificate, key or token is not valid."""

    exit_code = 17


class StorageError(FedpactError):
    """The disk or the database cannot be written."""

    exit_code = 18


class RunError(FedpactError):
    """A run cannot go on."""

    exit_code = 19


class TrainingError(FedpactError):
    """Training did not do what it must: a self-test failed."""

    exit_code = 20


class AuditError(FedpactError):
    """A transcript is not whole, or contradicts another."""

    exit_code = 21
