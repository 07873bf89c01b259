"""What a user did wrong, said so that he can mend it. Imports nothing, so that every room may use it."""


class ConfigError(ValueError):
    """A mistake of the user, in a config, in data or on the command line, that needs no traceback."""


class CheckpointError(ConfigError, RuntimeError):
    """A checkpoint that does not fit; a RuntimeError, too, as those of PyTorch's own loading are."""


class DivergedError(Exception):
    """Training is over: its loss, gradients or weights are no longer finite."""
