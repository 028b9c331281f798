"""The mistakes a user can make: one line each, saying what is wrong, where, and what to do; each with its exit code."""


class LeanLMError(Exception):
    """Base of every error meant for a person. The command line prints the message alone and exits with `code`."""

    code = 1


class UsageError(LeanLMError):
    """A flag, an argument or a value that cannot be meant: exit code 2."""

    code = 2


class NotFound(LeanLMError):
    """A file, model, revision or network that is not there (or not allowed to be used): exit code 3."""

    code = 3


class CheckpointError(LeanLMError):
    """A checkpoint, session or state file that was found and cannot be understood: exit code 4."""

    code = 4


class CheckFailed(LeanLMError):
    """A check that was run and did not hold (non-finite logits, a failed comparison): exit code 5."""

    code = 5


class OutOfMemory(LeanLMError):
    """A device whose memory does not hold what was asked for; the message says how much of it fits."""


class CapacityError(LeanLMError):
    """A state with full attention was asked to remember more tokens than it was made for."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand inside one of ours; its type's name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
