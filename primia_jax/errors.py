"""Errors that a user can cause, and the exit code that each ends the command with.

Every message is one line that says what is wrong, where, and how to mend it.
"""


class UserError(Exception):
    """A mistake of the user's or of the user's data: shown as one line, without a traceback."""

    exit_code = 1
    party = ""  # of the computation, in whose program it was raised


class ConfigError(UserError):
    """An unknown key, a wrong type or an impossible value in the configuration."""

    exit_code = 2


class DataError(UserError):
    """Images, labels or folders that cannot be used."""

    exit_code = 3


def joined(first: DataError, second: DataError) -> DataError:
    """One error that says both, as those of two hospitals whose images cannot be used."""
    return first if str(second) in str(first) else DataError(f"{first}; {second}")


class CheckpointError(UserError):
    """A checkpoint or weights file that is missing, damaged or of another model."""

    exit_code = 4


class ClusterError(UserError):
    """The Ray cluster cannot be reached, or a party of the computation was lost."""

    exit_code = 5


class PartyLost(ClusterError):
    """Parties whose actors died or were ended because they took too long; others may go on."""

    def __init__(self, message: str, parties: tuple[str, ...] = ()):
        super().__init__(message, parties)
        self.parties = parties

    def __str__(self) -> str:
        """The line without the names."""
        return str(self.args[0])


class StorageError(UserError):
    """The working directory cannot be written to (full disk, permissions)."""

    exit_code = 6


class ProtocolError(UserError):
    """A party program broke the rules: a deadlock, a non-array message, an unproven bound."""

    exit_code = 7


class TrainingError(UserError):
    """The training went wrong, for instance diverged."""

    exit_code = 8


class BudgetError(UserError):
    """The request would spend more privacy than the budget allows."""

    exit_code = 9
