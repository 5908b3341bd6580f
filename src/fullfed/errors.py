"""The one exception that is meant for a person."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, field or client and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
