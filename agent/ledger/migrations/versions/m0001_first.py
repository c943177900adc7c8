"""The first schema: every table of `agent.ledger.schema` as it stood at version 0.1."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("started_at", sa.String(32), nullable=False),
        sa.Column("started_venue_at", sa.String(32), nullable=False),
        sa.Column("ended_at", sa.String(32)),
        sa.Column("end_reason", sa.String(200)),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("account_scope", sa.String(64), nullable=False),
        sa.Column("venue", sa.String(40), nullable=False),
        sa.Column("strategy", sa.String(80), nullable=False),
        sa.Column("strategy_id", sa.String(80), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "cycles",
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("symbols", sa.Integer(), nullable=False),
        sa.Column("decided_wall_ms", sa.Float()),
        sa.PrimaryKeyConstraint("close_time"),
    )
    op.create_table(
        "bars_seen",
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("start", sa.String(32), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("open", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("close", sa.Float(), nullable=False),
        sa.Column("volume", sa.Float(), nullable=False),
        sa.Column("adj_factor", sa.Float(), nullable=False),
        sa.Column("signals", sa.Text()),
        sa.PrimaryKeyConstraint("symbol", "start", "revision"),
    )
    op.create_index("bars_seen_close", "bars_seen", ["close_time"])
    op.create_table(
        "decisions",
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("action", sa.String(4), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("held_qty", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("outcome", sa.String(40), nullable=False),
        sa.Column("votes", sa.Text(), nullable=False),
        sa.Column("reference_price", sa.Float()),
        sa.Column("volatility", sa.Float()),
        sa.Column("stop", sa.String(64)),
        sa.Column("take_profit", sa.String(64)),
        sa.Column("bar_start", sa.String(32)),
        sa.PrimaryKeyConstraint("close_time", "symbol"),
    )
    op.create_index("decisions_symbol", "decisions", ["symbol", "close_time"])
    op.create_table(
        "intents",
        sa.Column("intent_id", sa.String(40), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("leg", sa.String(12), nullable=False),
        sa.Column("qty", sa.String(64), nullable=False),
        sa.Column("stop", sa.String(64)),
        sa.Column("take_profit", sa.String(64)),
        sa.Column("max_loss_usd", sa.String(64)),
        sa.Column("reference_price", sa.Float(), nullable=False),
        sa.Column("predicted_cost_fraction", sa.Float(), nullable=False),
        sa.Column("valid_until", sa.String(32)),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("intent_id"),
    )
    op.create_index("intents_close", "intents", ["close_time"])
    op.create_index("intents_open", "intents", ["state"])
    op.create_table(
        "orders",
        sa.Column("client_id", sa.String(128), nullable=False),
        sa.Column("intent_id", sa.String(40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("parent_client_id", sa.String(128)),
        sa.Column("venue_id", sa.String(80), nullable=False),
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("leg", sa.String(12), nullable=False),
        sa.Column("type", sa.String(12), nullable=False),
        sa.Column("qty", sa.String(64), nullable=False),
        sa.Column("limit_price", sa.String(64)),
        sa.Column("stop_price", sa.String(64)),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("filled_qty", sa.String(64), nullable=False),
        sa.Column("avg_price", sa.String(64)),
        sa.Column("submitted_at", sa.String(32), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(300), nullable=False),
        sa.PrimaryKeyConstraint("client_id"),
    )
    op.create_index("orders_intent", "orders", ["intent_id"])
    op.create_index("orders_state", "orders", ["state"])
    op.create_index("orders_symbol", "orders", ["symbol"])
    op.create_table(
        "fills",
        sa.Column("venue", sa.String(40), nullable=False),
        sa.Column("exec_id", sa.String(80), nullable=False),
        sa.Column("client_id", sa.String(128), nullable=False),
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("leg", sa.String(12), nullable=False),
        sa.Column("qty", sa.String(64), nullable=False),
        sa.Column("price", sa.String(64), nullable=False),
        sa.Column("fee", sa.String(64), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("venue", "exec_id"),
    )
    op.create_index("fills_client", "fills", ["client_id"])
    op.create_index("fills_symbol", "fills", ["symbol", "at"])
    op.create_table(
        "costs",
        sa.Column("venue", sa.String(40), nullable=False),
        sa.Column("exec_id", sa.String(80), nullable=False),
        sa.Column("decision_price", sa.Float()),
        sa.Column("quote_price", sa.Float()),
        sa.Column("predicted_fraction", sa.Float()),
        sa.Column("realised_fraction", sa.Float()),
        sa.PrimaryKeyConstraint("venue", "exec_id"),
    )
    op.create_table(
        "positions",
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("qty", sa.String(64), nullable=False),
        sa.Column("avg_cost", sa.String(64), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("symbol"),
    )
    op.create_table(
        "exits",
        sa.Column("symbol", sa.String(40), nullable=False),
        sa.Column("intent_id", sa.String(40), nullable=False),
        sa.Column("side", sa.String(4), nullable=False),
        sa.Column("stop", sa.String(64)),
        sa.Column("take_profit", sa.String(64)),
        sa.Column("max_loss_usd", sa.String(64)),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("armed_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("symbol"),
    )
    op.create_table(
        "equity",
        sa.Column("close_time", sa.String(32), nullable=False),
        sa.Column("equity", sa.String(64), nullable=False),
        sa.Column("cash", sa.String(64), nullable=False),
        sa.Column("gross_exposure", sa.Float(), nullable=False),
        sa.Column("peak", sa.String(64), nullable=False),
        sa.Column("day_start", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("close_time"),
    )
    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("symbol", sa.String(40)),
        sa.Column("detail", sa.String(500), nullable=False),
        sa.PrimaryKeyConstraint("incident_id"),
    )
    op.create_index("incidents_at", "incidents", ["at"])
    op.create_table(
        "state",
        sa.Column("key", sa.String(80), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("state")
    op.drop_table("incidents")
    op.drop_table("equity")
    op.drop_table("exits")
    op.drop_table("positions")
    op.drop_table("costs")
    op.drop_table("fills")
    op.drop_table("orders")
    op.drop_table("intents")
    op.drop_table("decisions")
    op.drop_table("bars_seen")
    op.drop_table("cycles")
    op.drop_table("runs")
