"""The store of a run: trials, pending proposals, states of strategies, logs; in SQLite, or any other database SQLAlchemy speaks to."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    Insert,
    RowMapping,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Space
from niwaki.store.checkpoint import StoreError, pack, unpack
from niwaki.store.schema import LOG, META, PENDING, STATES, TABLES, TRIALS, VERSION
from niwaki.trial import Trial, TrialError

SMALLEST_FILE = 512  # bytes; of any SQLite database that holds a table
PATIENCE_S = 10.0  # how long a write waits for another process that is writing

CAUSES = (  # a part of the database's own message, and what it means to a reader
    ("locked", "another process is writing to it; let that one end, or stop it, and try again"),
    ("full", "the disk is full; make room and go on, nothing that was stored is lost"),
    ("disk i/o error", "the disk is full or failing; nothing that was stored is lost"),
    ("readonly", "the file or its folder is read-only"),
    ("unable to open", "the file or its folder cannot be opened or is read-only"),
    ("malformed", "the file is damaged or cut short; put a copy of it back, or begin a new run"),
    ("not a database", "the file is damaged or no store at all; put a copy of it back, or begin a new run"),
)


@dataclass(frozen=True)
class State:
    """A strategy's state as it was kept: `content` is JSON. told: the number of trials, in the order of proposal, that it has been told."""

    told: int
    content: Any
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class LogRow:
    """What one epoch of one phase ("search", "train") was like."""

    phase: str
    epoch: int
    metrics: dict[str, Any]


def _insert_new(table: Table, *others: Table) -> Insert:
    """Inserts a row unless there is one of its key, in `others` of the same key neither. Made once: building a statement costs more than
    running it, and asking first would cost as much again."""
    row = [bindparam(column.name, type_=column.type) for column in table.columns]
    there = [
        ~exists().where(*(each.c[key.name] == bindparam(key.name, type_=key.type) for key in table.primary_key))
        for each in (table, *others)
    ]
    return insert(table).from_select([column.name for column in table.columns], select(*row).where(*there))


_INSERT_NEW = {TRIALS.name: _insert_new(TRIALS), PENDING.name: _insert_new(PENDING, TRIALS)}
_TRIED = select(TRIALS.c.number).where(TRIALS.c.run == bindparam("of_run"), TRIALS.c.number == bindparam("at"))
_DROP_PENDING = delete(PENDING).where(PENDING.c.run == bindparam("of_run"), PENDING.c.number == bindparam("at"))


class Store:
    """Opened by `open_store`. Every method is one transaction: done and on the disk when it returns, or not done at all.

    run: names one search within the store; a run folder has a store of its own and usually one run in it.
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self.url = url
        self._engine = engine

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the database go. What was stored is safe without it."""
        self._engine.dispose()

    # ---------------------------------------------------------------- trials

    def append(self, run: str, trial: Trial) -> None:
        """Keeps `trial`, which is pending no more. The same trial once more changes nothing; another of its number is an error."""
        row = {
            "arch": _json(trial.arch.to_json()),
            "metrics": _json(dict(trial.metrics)),
            "source": trial.source,
            "seconds": float(trial.seconds),
            "status": trial.status,
            "note": trial.note,
        }
        with self._writing(f"keep trial {trial.number} of {run!r}") as connection:
            self._add(connection, TRIALS, {"run": run, "number": trial.number}, row)
            connection.execute(_DROP_PENDING, {"of_run": run, "at": trial.number})

    def trials(self, run: str, space: Space) -> list[Trial]:
        """The trials of a run in the order of their numbers, their architectures checked against `space`."""
        with self._reading("read its trials") as connection:
            rows = connection.execute(select(TRIALS).where(TRIALS.c.run == run).order_by(TRIALS.c.number)).mappings().all()
        return [self._trial(row, space) for row in rows]

    def runs(self) -> list[str]:
        """The names of the runs that have trials or pending proposals, in alphabetical order."""
        with self._reading("list its runs") as connection:
            return sorted({name for table in (TRIALS, PENDING) for name in connection.execute(select(table.c.run).distinct()).scalars()})

    # ---------------------------------------------------------------- pending proposals

    def add_pending(self, run: str, proposals: Mapping[int, Architecture]) -> None:
        """Keeps what a strategy proposed, number -> architecture, all or none, before any of it is evaluated."""
        with self._writing(f"keep the proposals of {run!r}") as connection:
            for number, arch in proposals.items():
                self._add(connection, PENDING, {"run": run, "number": number}, {"arch": _json(arch.to_json())})

    def pending(self, run: str, space: Space) -> dict[int, Architecture]:
        """The proposals of a run that have no trial yet, in the order of their numbers."""
        with self._reading("read its pending proposals") as connection:
            rows = connection.execute(select(PENDING).where(PENDING.c.run == run).order_by(PENDING.c.number)).mappings().all()
        return {row["number"]: self._architecture(row, space) for row in rows}

    # ---------------------------------------------------------------- state, log, facts

    def save_state(self, run: str, content: Any, *, told: int, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Keeps a strategy's state (JSON and named arrays) in place of the one before."""
        packed = pack(arrays or {}, content)
        with self._writing(f"keep the state of {run!r}") as connection:
            self._put(connection, STATES, {"run": run}, {"told": told, "content": packed})

    def load_state(self, run: str) -> State | None:
        """The state that was kept last, if any."""
        with self._reading("read the state of a strategy") as connection:
            row = connection.execute(select(STATES).where(STATES.c.run == run)).mappings().one_or_none()
        if row is None:
            return None
        arrays, content = unpack(row["content"])
        return State(row["told"], content, arrays)

    def log(self, run: str, phase: str, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Keeps what an epoch was like (JSON); an epoch done again after a stop replaces its row."""
        with self._writing(f"log epoch {epoch} of {phase}") as connection:
            self._put(connection, LOG, {"run": run, "phase": phase, "epoch": epoch}, {"metrics": _json(dict(metrics))})

    def log_rows(self, run: str, phase: str | None = None) -> list[LogRow]:
        """The log of a run (of one phase, if given), by phase and epoch."""
        wanted = select(LOG).where(LOG.c.run == run).order_by(LOG.c.phase, LOG.c.epoch)
        with self._reading("read its log") as connection:
            rows = connection.execute(wanted if phase is None else wanted.where(LOG.c.phase == phase)).mappings().all()
        return [LogRow(row["phase"], row["epoch"], json.loads(row["metrics"])) for row in rows]

    def set_fact(self, key: str, value: Any) -> None:
        """Keeps one fact (JSON) about the whole store, such as the hash of its configuration."""
        with self._writing(f"keep {key!r}") as connection:
            self._put(connection, META, {"key": f"fact/{key}"}, {"value": _json(value)})

    def fact(self, key: str, default: Any = None) -> Any:
        """The fact that was kept last under `key`."""
        with self._reading(f"read {key!r}") as connection:
            text = connection.execute(select(META.c.value).where(META.c.key == f"fact/{key}")).scalar_one_or_none()
        return default if text is None else json.loads(text)

    # ---------------------------------------------------------------- inside

    def _add(self, connection: Connection, table: Table, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Inserts a row that, once there, never changes."""
        if connection.execute(_INSERT_NEW[table.name], {**key, **row}).rowcount:
            return
        if table is PENDING and connection.execute(_TRIED, {"of_run": key["run"], "at": key["number"]}).first():
            raise StoreError(f"proposal {key['number']} of {key['run']!r} has a trial already in the store {self.url}")
        there = connection.execute(_at(select(table), table, key)).mappings().one()
        if differing := [name for name, value in row.items() if there[name] != value]:
            name = differing[0]
            raise StoreError(
                f"number {key['number']} of {key['run']!r} is already in the store {self.url} with another {name}: "
                f"{there[name]!r:.200}, not {row[name]!r:.200}"
            )

    def _put(self, connection: Connection, table: Table, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Inserts a row, or replaces it."""
        if not connection.execute(_at(update(table), table, key).values(**row)).rowcount:
            connection.execute(insert(table).values(**key, **row))

    def _trial(self, row: RowMapping, space: Space) -> Trial:
        arch = self._architecture(row, space)
        try:
            return Trial(row["number"], arch, json.loads(row["metrics"]), row["source"], row["seconds"], row["status"], row["note"])
        except (TrialError, ValueError) as error:
            raise StoreError(f"trial {row['number']} of {row['run']!r} in the store {self.url} is damaged: {error}") from error

    def _architecture(self, row: RowMapping, space: Space) -> Architecture:
        try:
            return Architecture.from_json(json.loads(row["arch"]), space)
        except SpaceError as error:
            raise StoreError(f"number {row['number']} of {row['run']!r} in the store {self.url}: {error}") from error

    @contextmanager
    def _reading(self, what: str) -> Iterator[Connection]:
        with _explained(self.url, what), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self, what: str) -> Iterator[Connection]:
        with _explained(self.url, what), self._engine.connect().execution_options(niwaki_write=True) as connection, connection.begin():
            yield connection


def open_store(where: str | Path, *, read_only: bool = False) -> Store:
    """The store at `where`: the path of an SQLite file, made if it is not there, or the URL of a database.

    read_only: for a reader; never makes or changes anything, and works in a folder that cannot be written to.
    """
    url = str(where)
    if "://" in url and not url.startswith("sqlite"):
        try:
            store = Store(create_engine(url), make_url(url).render_as_string(hide_password=True))
        except (ArgumentError, ImportError) as error:
            raise StoreError(f"{url.split('@')[-1]!r} is no path and no URL of a database that can be used here: {error}") from error
        if not read_only:
            with store._writing("make its tables") as connection:
                _make_tables(connection)
    else:
        path = Path(make_url(url).database or "") if "://" in url else Path(url)
        try:
            store = Store(_open_sqlite(path, read_only=read_only), str(path))
        except OSError as error:
            raise StoreError(f"the store {path} cannot be opened: {error.strerror or error}") from error
    try:
        with store._reading("be opened") as connection:
            _check(connection, store.url)
    except BaseException:
        store.close()
        raise
    return store


def _check(connection: Connection, url: str) -> None:
    """Refuses what is damaged, no store, or of a newer version."""
    if connection.dialect.name == "sqlite" and (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
        raise StoreError(f"the store {url} is damaged or cut short ({found}); put a copy of it back, or begin a new run")
    if not inspect(connection).has_table(META.name):
        raise StoreError(f"{url} is a database, but no store of niwaki")
    text = connection.execute(select(META.c.value).where(META.c.key == "schema_version")).scalar_one_or_none()
    if text is None:
        raise StoreError(f"{url} is a database, but no store of niwaki: it does not say its version")
    if (version := int(text)) != VERSION:
        kind, advice = ("newer", "update niwaki") if version > VERSION else ("older", "open it with the niwaki that wrote it")
        raise StoreError(f"the store {url} is of a {kind} version: {version}, where this niwaki reads and writes {VERSION}; {advice}")


def _make_tables(connection: Connection) -> None:
    TABLES.create_all(connection)
    if connection.execute(select(func.count()).select_from(META)).scalar_one() == 0:
        connection.execute(insert(META).values(key="schema_version", value=str(VERSION)))


def _open_sqlite(path: Path, *, read_only: bool) -> Engine:
    if not read_only and not path.exists():
        _create(path)
    if not path.exists():
        raise StoreError(f"there is no store {path}")
    log = path.with_name(path.name + "-wal")  # what was written since the last clean close; without it the file itself is complete
    is_complete = not log.exists() or not log.stat().st_size
    if is_complete and path.stat().st_size < _promised_size(path):
        raise StoreError(f"the store {path} has been cut short; put a copy of it back, or delete it to begin a new one")
    if read_only:
        # immutable: needs no right to write into the folder, where else SQLite would keep its locks
        return _sqlite_engine(path, "mode=ro&immutable=1" if is_complete else "mode=ro")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise StoreError(f"the store {path} cannot be written to: the file or its folder is read-only")
    return _sqlite_engine(path, "mode=rw")


def _sqlite_engine(path: Path, mode: str) -> Engine:
    def connect() -> sqlite3.Connection:
        # SQLAlchemy's pool hands a connection to one thread at a time. isolation_level: transactions begin where we say, below
        connection = sqlite3.connect(
            f"file:{quote(str(path.resolve()))}?{mode}", uri=True, timeout=PATIENCE_S, check_same_thread=False, isolation_level=None
        )
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk, not on its way there
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # a transaction that will write takes the lock first: one that reads, then wants it, could only fail
        writes = connection.get_execution_options().get("niwaki_write", False)
        # straight to the driver: as a statement of SQLAlchemy's it would cost as much as the write itself
        connection.connection.cursor().execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _promised_size(path: Path) -> int:
    """The bytes that the file of a database has by its own header; of a shorter one SQLite would read zeros, or take it for a new one."""
    with path.open("rb") as file:
        header = file.read(SMALLEST_FILE)
    if len(header) < SMALLEST_FILE or not header.startswith(b"SQLite format 3\0"):
        return SMALLEST_FILE
    page = int.from_bytes(header[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")


def _create(path: Path) -> None:
    """An empty store at `path`, made elsewhere and put there whole: an empty file at `path` is then always one that was cut short."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        engine = _sqlite_engine(partial, "mode=rwc")
        try:
            with _explained(str(path), "be made"):
                with engine.connect().execution_options(niwaki_write=True) as connection, connection.begin():
                    _make_tables(connection)
                with closing(engine.raw_connection()) as raw:
                    raw.cursor().execute("PRAGMA journal_mode=WAL")  # stays with the file; readers and the writer never wait for each other
        finally:
            engine.dispose()
        os.link(partial, path)  # unlike a rename, it does not replace a store that another process has just made
    except FileExistsError:
        if not path.is_file():
            raise StoreError(f"the store {path} cannot be made: {path.parent} or {path} is in the way") from None
    except OSError as error:
        raise StoreError(f"the store {path} cannot be made: {error.strerror or error}") from error
    finally:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    """Turns the database's errors into ours, with the reason in a reader's words."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", None) or error)
        meaning = next((text for part, text in CAUSES if part in reason.lower()), None)
        raise StoreError(f"the store {url} could not {what}: {f'{meaning} ({reason})' if meaning else reason}") from error


def _at(statement: Any, table: Table, key: Mapping[str, Any]) -> Any:
    return statement.where(*(table.c[name] == value for name, value in key.items()))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"only JSON with finite numbers can be stored, not {value!r:.300}: {error}") from error
