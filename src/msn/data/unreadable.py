"""Images that an evaluation cannot read: report them together, or skip them if asked to."""

from collections.abc import Iterable

from msn.data.image import BadImage
from msn.runtime.errors import UserError, printable
from msn.runtime.wording import counted

NAMED = 10  # in a message


class Unreadable:
    """Gathers bad images while all are looked at, so that one message names them all.

    Args:
        skip: whether to go on without them.
        option: how the user asks for that, for the message.

    Attributes:
        found: reason by name, in the order in which they were met.
    """

    def __init__(self, *, skip: bool = False, option: str = "--skip-bad") -> None:
        self.skip = skip
        self.option = option
        self.found: dict[str, str] = {}

    @property
    def given_up(self) -> bool:
        """Whether only the error message is still to come, so that computing on is of no use."""
        return bool(self.found) and not self.skip

    def meet(self, bad: Iterable[BadImage]) -> None:
        """Record bad images that were met, each with its reason."""
        for image in bad:
            self.found.setdefault(printable(image.name), printable(image.reason))

    def settle(self) -> list[str]:
        """List the images that are left out, in one line, or in none if all could be read.

        Raises:
            UserError: there are bad images, and they are not to be left out.
        """
        if not self.found:
            return []
        count = counted(len(self.found), "image")
        named = ", ".join(f"{name} ({why})" for name, why in list(self.found.items())[:NAMED])
        more = f", and {len(self.found) - NAMED} more" * (len(self.found) > NAMED)
        if not self.skip:
            raise UserError(
                f"{count} cannot be read: {named}{more}; replace or remove"
                f" {'them' if len(self.found) > 1 else 'it'}, or continue without: {self.option}"
            )
        return [f"{count} cannot be read and left out: {named}{more}"]
