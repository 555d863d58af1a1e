"""The errors that are expected: a user can act on their one line, so no traceback is shown."""


def one_line(error: BaseException) -> str:
    """What an error says, such as Postgres' in several lines; the name of its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class IngestError(Exception):
    """An expected error. The command line prints its text as one line and exits with 1."""


class DatabaseError(IngestError):
    """The database cannot be reached, or does not do what it must."""


class MigrationError(IngestError):
    """The database's schema is not the one this release needs, or cannot be made so."""


class EmbeddedPostgresError(IngestError):
    """The embedded Postgres cannot be made, started or stopped."""
