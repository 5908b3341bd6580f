"""What goes wrong: at a person's hands, and in what comes over a network."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the file, field or client and what to do.

    The command line prints it without a traceback and exits with code 2.

    Examples:
        >>> try:
        ...     fullfed.load_recipe("no.toml")
        ... except fullfed.UserError as error:
        ...     print(error)
        no.toml: the recipe cannot be read (No such file or directory).
    """


class MessageError(Exception):
    """Bytes that are not a valid message; the text says in one sentence what is wrong."""
