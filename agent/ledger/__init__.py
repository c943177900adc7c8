"""The only durable state of the daemon: SQLAlchemy tables, Alembic migrations, one writer.

`schema` holds the tables, `store` opens a database and reads and writes it. SQLite in WAL mode by default.
"""
