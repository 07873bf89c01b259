"""What becomes of the row of a prompt when it arrives in its block (docs/method/arrival.md)."""
from typing import TYPE_CHECKING

from torch import Tensor

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import Kinds

if TYPE_CHECKING:
    from mmprovpt.prompts import PromptSet

ARRIVALS = Kinds('arrival')


class Keep:
    """The row stays as it is, and so does what an optimizer remembers of it: what the paper says, which says nothing.

    The base of all others, registered in ``ARRIVALS``.

    Attributes:
        forgets: Whether optimizers forget what they remember of a row that ``row`` changes. It is in the units of
            gradients and is not scaled: kept, the first steps go on where the old row went.
        in_place: Whether a prompt that is given back to its own block arrives, too.
    """

    forgets = False
    in_place = False

    def row(self, prompts: 'PromptSet', prompt: int, block: int) -> Tensor | None:
        """(C_block,) the new row of a prompt that is in ``block`` by now; None leaves the row as it is."""
        return None


class Shrink(Keep):
    """The row is multiplied by a small factor: a new birth, for what comes of it is made by the steps that follow.

    A block reads a row through a norm. Shortened, it is small behind the norm too, once its deviation is near the
    norm's ε, and its steps are longer by the inverse of its length. Adaptive rows are weights of a linear map, which
    start at 0 and make prompts that are as short as the row; so they shrink alike.

    Args:
        factor: > 0. 0.001 is the authors' (docs/method/authors_code.md).

    Raises:
        ConfigError: The factor is not more than 0.
    """

    def __init__(self, factor: float = 1e-3) -> None:
        if not factor > 0:
            raise ConfigError(f'arrival: factor must be more than 0, but is {factor}')
        self.factor = factor

    def row(self, prompts: 'PromptSet', prompt: int, block: int) -> Tensor:
        """See the base class."""
        return prompts.tokens.detach()[prompt, :prompts.widths[block]] * self.factor


def build_arrival(arrival: str | dict) -> Keep:
    """The arrival that a config means: ``'shrink'``, or ``dict(type='shrink', factor=0.01)``.

    Raises:
        ConfigError: There is none of that name, or an argument is unknown or invalid.
    """
    return ARRIVALS.build(dict(type=arrival) if isinstance(arrival, str) else arrival)


ARRIVALS.update(keep=Keep, shrink=Shrink)
