"""How far a long call is: a bar in a terminal, nothing in a pipe, or a function of one's own.

Every long call takes ``progress``:

- ``None`` (the default): a bar, once the call has taken longer than a second, if the standard error is a terminal;
- ``True``: a bar from the start, if the standard error is a terminal;
- ``False``: nothing;
- a function: called with a :class:`Progress` at the start and after every step, wherever the call runs.

Bars are rich's where rich is installed, else a line of text. They are gone when the call ends, by an error or an
interrupt too; a call inside a call that has a bar has none. Under ``torch.distributed`` rank 0 alone has a bar;
functions are called on every rank.

Imports: nothing of ours; rich on use.
"""

from .counting import Meter, Show, check_progress, meter, of_steps, over
from .state import Progress, clock

__all__ = ["Meter", "Progress", "Show", "check_progress", "clock", "meter", "of_steps", "over"]
