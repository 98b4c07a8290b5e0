r"""What an object was made from: the arguments of its constructor, as they were passed.

A subclass of :class:`Recorded` need do nothing.  What its constructor is called with is turned
into plain values before the constructor runs, so that the record holds no object of the user's,
survives a constructor that changes what it is given, and is copied and pickled with the object::

    >>> class Mine(Recorded):
    ...     def __init__(self, temperature, *, steps=10):
    ...         self.t, self.n = temperature, steps  # attributes are called as they please
    >>> shown(record_of(Mine(0.5)))  # defaults are left out
    'Mine(temperature=0.5)'
    >>> record_of(Mine(0.5, steps=3))["arguments"]
    {'temperature': 0.5, 'steps': 3}
    >>> differences(record_of(Mine(0.5)), record_of(Mine(0.7)))
    ['temperature is 0.5 and 0.7']

========== ==================================================================
recorded   :class:`Recorded`, whose subclasses know what they were made from
forms      values of any kind as plain ones, which can be written and compared
comparing  where two records differ, and how one is shown
listing    classes of ours by name: what a folder exports, and values made anew
========== ==================================================================
"""

from pyro_vae.recording.comparing import differences, shown
from pyro_vae.recording.forms import (
    KIND,
    PLAIN,
    Form,
    code_of,
    constants_of,
    form_of,
    is_comparable,
    is_users,
    qualified,
    used_by,
)
from pyro_vae.recording.recorded import Record, Recorded, record_of

__all__ = [
    "KIND",
    "PLAIN",
    "Form",
    "Record",
    "Recorded",
    "code_of",
    "constants_of",
    "differences",
    "form_of",
    "is_comparable",
    "is_users",
    "qualified",
    "record_of",
    "shown",
    "used_by",
]
