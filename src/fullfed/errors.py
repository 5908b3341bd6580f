"""What goes wrong: at a person's hands, and in what comes over a network."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, field or client and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class MessageError(Exception):
    """Bytes that are not a valid message; the text says in one sentence what is wrong."""
