"""The one exception a user sees as a line of text."""


class UserError(Exception):
    """
    A user's mistake, said in one line: the thing, what is wrong with it, what to do.

    The command line prints it without a traceback and leaves with exit code 2.
    """
