"""The journal's file: SQLite, and nothing that waits or decides."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import structlog

from slotd.events import Event, types
from slotd.journal.entries import LOST, Entry, KeptRequest, encode
from slotd.journal.rows import EVENT_COLUMNS, REQUEST_COLUMNS, Rows, request_row, slot_of

__all__ = ["MAX_AROUND", "Store", "is_broken"]

log = structlog.get_logger("slotd")

VERSION = 1
"""Of the tables. Another number, or a file that is none of ours, is moved aside."""

PRUNE_AT_ONCE = 2048
"""Most entries that go in one transaction, should the bounds have been lowered."""

MAX_AROUND = 200
"""Most events told with one request."""

ROWS_AT_ONCE = (64, 8, 1)
"""Rows of one statement: few statements, so that SQLite compiles each but once."""

BUSY_S = 1.0
"""Longest wait for another program that reads the file."""

_SCHEMA = f"""
CREATE TABLE events (
    n INTEGER PRIMARY KEY, run TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL,
    kind TEXT NOT NULL, slot TEXT, data TEXT NOT NULL);
CREATE INDEX events_time ON events (time);
CREATE TABLE requests (
    n INTEGER PRIMARY KEY, run TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL,
    id TEXT NOT NULL, began REAL NOT NULL, slot TEXT, outcome TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX requests_id ON requests (id);
PRAGMA user_version = {VERSION};
"""

_ONCE = ("DROP INDEX IF EXISTS events_once", "DROP INDEX IF EXISTS requests_once")
"""Of a slotd of before, which needed them to keep things once: the newest row tells that, at no cost."""

_LIVE = """
CREATE TABLE IF NOT EXISTS live (
    run TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (run, id)) WITHOUT ROWID
"""
"""Requests that have begun and are not over. A slotd of before leaves it alone."""

_EVENTS = (
    "SELECT n, run, seq, time, kind, slot, data FROM events",
    f"SELECT n, run, seq, time, '{types.REQUEST_FINISHED}' AS kind, slot, record FROM requests",
)


class Store:
    """Tables of events and of requests, in the order they were kept.

    A request is a row once it is over. One that lasts longer than a batch is
    noted until then beside the tables; what is found there of another run was
    under way when that ended, and becomes a row with the outcome ``lost``.

    Both draw their numbers (``n``) from one count, so that they can be told as
    one story. What is written once more, as it was not known to be on disk, is
    kept once: by the ``seq`` of the newest row it is seen to be there.
    ``run`` is the run that writes; of the others it is only read.

    For one thread at a time, whichever it is. Opens the file when
    it is first needed and after :meth:`close`; a file that is broken or of
    another version is moved aside then. Raises ``sqlite3.Error`` and
    ``OSError`` for a disk that will not have it.
    """

    def __init__(self, path: Path, max_events: int, max_requests: int, run: str) -> None:
        self._path = path
        self._run = run
        self._limits = {"events": max_events, "requests": max_requests}
        self._counts = {"events": 0, "requests": 0}
        self._next = 1
        self._newest = 0  # the last event of this run that is kept
        self._db: sqlite3.Connection | None = None
        self._adopted = False

    # --- writing --------------------------------------------------------------------

    def append(self, events: Sequence[Event]) -> None:
        """Keep them, all or none; what is there already is kept once. The oldest make room."""
        db = self._open()
        lost = [] if self._adopted else self._lost(db)
        rows = Rows(self._run, events, self._next + len(lost), after=self._newest)
        counts = dict(self._counts)
        try:
            db.execute("BEGIN IMMEDIATE")
            if self._limits["events"]:
                counts["events"] += _insert(db, "events", EVENT_COLUMNS, rows.events)
            if self._limits["requests"]:
                requests = [value for n, one in enumerate(lost, self._next) for value in (n, *one)]
                counts["requests"] += _insert(db, "requests", REQUEST_COLUMNS, requests + rows.requests)
                self._note_live(db, rows)
            if lost:
                db.execute("DELETE FROM live WHERE run != ?", (self._run,))
            for table in counts:
                counts[table] -= self._prune(db, table, counts[table])
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # it may be what has failed
                db.execute("ROLLBACK")
            raise
        self._counts = counts
        self._next = rows.next
        self._newest = rows.newest
        self._adopted = True

    def _note_live(self, db: sqlite3.Connection, rows: Rows) -> None:
        """Note who has begun and is not over."""
        if rows.holed:
            # Among what was missed may be ends: rather say nothing of a request than what is not so.
            db.execute("DELETE FROM live WHERE run = ?", (self._run,))
        db.executemany("DELETE FROM live WHERE run = ? AND id = ?", [(self._run, id) for id in rows.over])
        db.executemany(
            "INSERT OR IGNORE INTO live VALUES (?, ?, ?, ?, ?)",
            [(self._run, id, e.seq, e.time, encode(e.data)) for id, e in rows.begun.items()],
        )

    def _lost(self, db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        """As rows without their numbers: the requests that other runs than this one have left under way.

        ``total_s`` goes to the last that is known of their run.
        """
        rows = db.execute(
            "SELECT run, seq, time, data FROM live WHERE run != ? ORDER BY time LIMIT ?",
            (self._run, self._limits["requests"]),
        ).fetchall()
        last = {of: self._last_word(db, of) for of in {row[0] for row in rows}}
        return [
            request_row(
                of,
                seq,
                began,
                {**msgspec.json.decode(data), "outcome": LOST, "total_s": max(0.0, last[of] - began)},
            )
            for of, seq, began, data in rows
        ]

    def _last_word(self, db: sqlite3.Connection, run: str) -> float:
        """When the last thing happened that is known of a run."""
        found = [db.execute("SELECT max(time) FROM live WHERE run = ?", (run,)).fetchone()[0] or 0.0]
        for table in self._counts:
            newest = f"SELECT time FROM {table} WHERE run = ? ORDER BY seq DESC LIMIT 1"
            found += [time for (time,) in db.execute(newest, (run,))]
        return float(max(found))

    def _prune(self, db: sqlite3.Connection, table: str, count: int) -> int:
        """How many of the oldest went."""
        surplus = min(count - self._limits[table], PRUNE_AT_ONCE)
        if surplus <= 0:
            return 0
        last = f"SELECT n FROM {table} ORDER BY n LIMIT 1 OFFSET ?"
        return db.execute(f"DELETE FROM {table} WHERE n <= ({last})", (surplus - 1,)).rowcount

    # --- reading ---------------------------------------------------------------------

    def events(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        kind: str | None = None,
        slot: str | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        """The last ``limit`` that match, oldest first. ``kind``: whole, or its first words (``slot``)."""
        where, values = ["1"], []
        for clause, value in (("time >= ?", since), ("time <= ?", until), ("slot = ?", slot)):
            if value is not None:
                where.append(clause)
                values.append(value)
        if kind is not None:
            where.append("(kind = ? OR substr(kind, 1, ?) = ?)")
            values += [kind, len(kind) + 1, kind + "."]
        # Each in its own order, so that neither is read to its end for its last rows.
        rows: list[tuple[Any, ...]] = []
        for table in _EVENTS:
            select = f"SELECT * FROM ({table}) WHERE {' AND '.join(where)} ORDER BY n DESC LIMIT ?"
            rows += self._open().execute(select, (*values, limit)).fetchall()
        rows.sort(key=lambda row: row[0])
        return _entries(rows[-limit:] if limit else ())

    def requests(self, id: str, limit: int) -> list[KeptRequest]:
        """The requests that had this id, newest first."""
        rows = self._open().execute(
            "SELECT run, record FROM requests WHERE id = ? ORDER BY n DESC LIMIT ?", (id, limit)
        )
        found = []
        for run, text in rows.fetchall():
            record: dict[str, Any] = msgspec.json.decode(text)
            found.append(KeptRequest(run, record, tuple(self.around(run, record))))
        return found

    def around(self, run: str, record: dict[str, Any]) -> list[Entry]:
        """What happened while a request lived: to its slots, over memory and devices, to slotd."""
        began = record.get("began_unix") or 0.0
        slots = [record.get("fallback_from"), slot_of(record)]
        rows = self._open().execute(
            "SELECT n, run, seq, time, kind, slot, data FROM events WHERE time BETWEEN ? AND ? AND run = ? "
            "AND (slot IN (?, ?) OR kind GLOB 'arbiter.*' OR kind GLOB 'server.*' OR kind GLOB 'actor.*' "
            "OR (kind = ? AND json_extract(data, '$.id') = ?)) ORDER BY n LIMIT ?",
            (
                began,
                began + (record.get("total_s") or 0.0),
                run,
                *slots,
                types.REQUEST_REPLAYED,
                record.get("id"),
                MAX_AROUND,
            ),
        )
        return _entries(rows.fetchall())

    def horizon(self) -> float | None:
        """When the oldest request began that is kept (wall clock), None if none is."""
        row = self._open().execute("SELECT began FROM requests ORDER BY n LIMIT 1").fetchone()
        return None if row is None else float(row[0])

    # --- the file -----------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def move_aside(self, why: str) -> None:
        """Begin with a new file; the old one is kept, in the place of what was moved before."""
        self.close()
        aside = self._path.with_name(self._path.name + ".aside")
        log.warning(
            "the journal cannot be read and is begun anew", file=str(self._path), why=why, kept_as=str(aside)
        )
        with suppress(FileNotFoundError):
            os.replace(self._path, aside)
        for ending in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._path}{ending}")

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            try:
                self._db = self._opened()
            except _Foreign as why:
                self.move_aside(str(why))
            except sqlite3.DatabaseError as error:
                if not is_broken(error):
                    raise
                self.move_aside(str(error))
            if self._db is None:
                self._db = self._opened()
        return self._db

    def _opened(self) -> sqlite3.Connection:
        # Its calls come from one worker thread after the other, never from two.
        db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != VERSION and (version or tables):
                raise _Foreign(f"its tables are version {version}, not {VERSION}")
            db.execute("PRAGMA journal_mode = WAL")
            # A commit survives the end of this process, however that ends; a
            # power cut may cost the last seconds.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 4194304")
            if not tables:
                db.executescript("BEGIN;" + _SCHEMA + "COMMIT;")
            db.execute(_LIVE)
            for statement in _ONCE:
                db.execute(statement)
            last, newest = 0, 0
            for table in self._counts:
                (self._counts[table],) = db.execute(f"SELECT count(*) FROM {table}").fetchone()
                for n, run, seq in db.execute(f"SELECT n, run, seq FROM {table} ORDER BY n DESC LIMIT 1"):
                    last = max(last, n)
                    newest = max(newest, seq if run == self._run else 0)
            self._next, self._newest = last + 1, newest
        except BaseException:
            db.close()
            raise
        return db


class _Foreign(Exception):
    """The file is not one of this version."""


def is_broken(error: Exception) -> bool:
    """Whether a file, and not the disk or a bug, is to blame: it will never be better."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _insert(db: sqlite3.Connection, table: str, columns: int, values: list[Any]) -> int:
    """Insert rows that are given value after value; returns how many.

    Many in one statement: at each the thread gives up Python's lock, and has to get it
    again from an event loop that is busy.
    """
    at = 0
    for rows in ROWS_AT_ONCE:
        width = rows * columns
        statement = _inserting(table, columns, rows)
        while len(values) - at >= width:
            db.execute(statement, values[at : at + width])
            at += width
    return at // columns


@cache
def _inserting(table: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"


def _entries(rows: Iterable[tuple[Any, ...]]) -> list[Entry]:
    return [
        Entry(run, seq, time, kind, slot, msgspec.json.decode(data))
        for _, run, seq, time, kind, slot, data in rows
    ]
