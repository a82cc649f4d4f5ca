"""The error that the command line shows without a traceback."""


class SuiteError(Exception):
    """Something the user can mend: a config, a data folder, a record, a results folder."""
