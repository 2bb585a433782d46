"""Every error a user can meet, in one hierarchy.

A message is one line: what is wrong, where (file, operator, knob), the value found, and the remedy.
`exit_status` is what the command line returns for the error: 2 for bad usage or input, 1 for a check
that failed, 130 for an interruption that lost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


class TcompError(Exception):
    """Base of all errors that tcomp raises on purpose.

    Messages quote files and arguments, so line ends and control characters in them are shown escaped.
    """

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class UsageError(TcompError):
    """A command line or an API call that contradicts itself or names something unknown."""


class GraphError(TcompError):
    """A Relay graph that is not well formed: undefined values, cycles, wrong types."""


class TypeRuleError(GraphError):
    """Operand types or attributes that an operator's type rule refuses."""


class ParseError(TcompError):
    """Relay text, a pass pipeline, a knob value or a log that does not parse."""


class ModelError(TcompError):
    """A model file that cannot be read or is not a valid model."""


class UnsupportedError(TcompError):
    """A valid model or graph that uses something tcomp has no implementation for."""


class TargetError(TcompError):
    """An unknown or unusable target."""


class DeviceError(TcompError):
    """A device that cannot be reached, or is lost while kernels are measured on it."""


class KernelError(TcompError):
    """A kernel that a GPU refuses to start, or that broke off there: the process must not go on using it."""


class ScheduleError(TcompError):
    """A schedule configuration that is not legal for its kernel."""


class BuildError(TcompError):
    """Code generation, the C compiler or the linker failed."""


class RecordError(TcompError):
    """A tuning log that cannot be read or written."""


class ArtifactError(TcompError):
    """A compiled artifact that cannot be loaded: damaged, of another ABI, for another CPU."""


class InputError(TcompError):
    """Arrays that do not fit a model's inputs: count, name, shape, dtype or layout."""


class CheckFailed(TcompError):
    """A check the user asked for (verify, replay --strict, --require-tuned) did not hold."""

    exit_status = 1


class Interrupted(TcompError):
    """The user interrupted long work; everything finished so far is kept."""

    exit_status = 130


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raise UsageError when the argument `what` has a `value` that is not among the `known` ones."""
    if value not in known:
        raise UsageError(f"{what} is `{value}`; it must be one of {', '.join(known)}")
