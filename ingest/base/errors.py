"""Expected errors: users can act on their one-line message, so no traceback is shown."""


def one_line(error: BaseException) -> str:
    """What an error says, such as Postgres' in several lines; the name of its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class IngestError(Exception):
    """An expected error. The command line prints its message as one line and exits with 1."""


class DatabaseError(IngestError):
    """The database cannot be reached, or does not work as required."""


class MigrationError(IngestError):
    """The database's schema is not the one this release needs, or cannot be migrated to it."""


class EmbeddedPostgresError(IngestError):
    """The embedded Postgres cannot be created, started or stopped."""
