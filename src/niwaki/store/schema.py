"""The tables of a store. All that is not a key is JSON text, so that a new metric or field needs no new column."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, String, Table, Text

VERSION = 1  # raised whenever a table below changes; a store says which one it was written by

TABLES = MetaData()

META = Table(
    "meta",
    TABLES,
    Column("key", String(200), primary_key=True),
    Column("value", Text, nullable=False),  # JSON
)
TRIALS = Table(
    "trials",
    TABLES,
    Column("run", String(200), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("arch", Text, nullable=False),  # JSON
    Column("metrics", Text, nullable=False),  # JSON
    Column("source", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("status", String(20), nullable=False),
    Column("note", Text, nullable=False),
)
PENDING = Table(  # proposals that have been asked for and have no trial yet
    "pending",
    TABLES,
    Column("run", String(200), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("arch", Text, nullable=False),  # JSON
)
STATES = Table(
    "states",
    TABLES,
    Column("run", String(200), primary_key=True),
    Column("told", Integer, nullable=False),  # how many trials the state has been told
    Column("content", LargeBinary, nullable=False),  # safetensors: named arrays and JSON, see checkpoint.pack
)
LOG = Table(
    "log",
    TABLES,
    Column("run", String(200), primary_key=True),
    Column("phase", String(200), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("metrics", Text, nullable=False),  # JSON
)
