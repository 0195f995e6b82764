"""The error of everything that a person can put right."""


class SkyshiftError(ValueError):
    """Something asked for cannot be done; the message says what is wrong, where, and the cure.

    Commands print the message alone and leave with status 1.
    """
