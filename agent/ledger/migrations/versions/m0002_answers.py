"""Answers of the language model, so that a replay can read what it said live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of answers."""
    op.create_table(
        "llm_answers",
        sa.Column("prompt_hash", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("prompt_version", sa.String(20), nullable=False),
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("content", sa.String(1000), nullable=False),
        sa.Column("probabilities", sa.Text()),
        sa.Column("mass", sa.Float()),
        sa.Column("latency_s", sa.Float(), nullable=False),
        sa.Column("done_reason", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("prompt_hash", "digest"),
    )
    op.create_index("llm_answers_close", "llm_answers", ["close_time"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("llm_answers")
