"""The store and the checkpoints: what was kept stays, whatever happens to the process, the disk or the files."""

import hashlib
import os
import pickle
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from niwaki.space.space import Decision, Space
from niwaki.store import engine
from niwaki.store.checkpoint import StoreError, load_checkpoint, pack, previous_path, save_checkpoint, unpack
from niwaki.store.engine import open_store
from niwaki.store.schema import VERSION
from niwaki.testing.store import check_store
from niwaki.testing.toy import toy_accuracy, toy_arrays, toy_space
from niwaki.trial import Trial, TrialError

SPACE = toy_space()
ARCHS = list(SPACE.enumerate())


def trial(number):
    arch = ARCHS[number % len(ARCHS)]
    return Trial(number, arch, {"accuracy": toy_accuracy(arch)}, "random", 0.5)


@pytest.mark.parametrize("where", ["run.sqlite", "a folder/with #1? and %20.sqlite"])
def test_sqlite_keeps_the_contract(tmp_path, where):
    check_store(lambda: open_store(tmp_path / where))


def test_sqlite_keeps_the_contract_opened_by_its_url(tmp_path):
    check_store(lambda: open_store(f"sqlite:///{tmp_path}/run.sqlite"))


def test_a_trial_comes_back_from_json_as_it_was():
    for one in (trial(3), Trial(4, ARCHS[0], {}, "evolution", 1.0, "failed", "its loss became NaN")):
        assert Trial.from_json(one.to_json(), SPACE) == one


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"number": -1}, "from 0, not -1"),
        ({"metrics": {"accuracy": float("nan"), "macs": 3.0}}, "no finite numbers: accuracy = nan"),
        ({"status": "lost"}, "'lost'; it is one of ok, failed, cut"),
        ({"metrics": {}}, "'failed' or 'cut'"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(fields, says):
    with pytest.raises(TrialError, match=says):
        Trial(**{"number": 0, "arch": ARCHS[0], "metrics": {"accuracy": 1.0}, **fields})


def test_trials_of_another_space_are_refused_naming_both(tmp_path):
    other = Space((Decision("a", (1, 2)),))
    with open_store(tmp_path / "run.sqlite") as store:
        store.append("r", trial(0))
        with pytest.raises(StoreError, match=f"{SPACE.hash}.*{other.hash}"):
            store.trials("r", other)


# ---------------------------------------------------------------- killed


def started(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def killed_after(process, lines, delay):
    """The last line that the process wrote in full, after it was killed."""
    seen = [process.stdout.readline().strip() for _ in range(lines)]
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")[:-1]
    assert process.wait() == -signal.SIGKILL
    return (seen + rest)[-1]


def test_what_has_a_trial_is_proposed_no_more_nor_what_was_to_be_kept_with_it(tmp_path):
    with open_store(tmp_path / "run.sqlite") as store:
        store.append("r", trial(1))
        with pytest.raises(StoreError, match="proposal 1 of 'r' has a trial already"):
            store.add_pending("r", {0: trial(0).arch, 1: trial(1).arch, 2: trial(2).arch})
        assert store.pending("r", SPACE) == {}


def test_a_store_killed_at_any_instant_has_every_trial_that_was_kept(tmp_path):
    code = """
        import sys
        from niwaki.store.engine import open_store
        from niwaki.testing.toy import *
        from niwaki.trial import Trial
        space = toy_space()
        archs = list(space.enumerate())
        store = open_store(sys.argv[1])
        number = len(store.trials("r", space))
        while True:
            store.add_pending("r", {number: archs[number % len(archs)]})
            arch = archs[number % len(archs)]
            store.append("r", Trial(number, arch, {"accuracy": toy_accuracy(arch)}, "random", 0.5))
            store.save_state("r", {"told": number}, told=number, arrays=toy_arrays(number))
            print(number, flush=True)
            number += 1
    """
    path = tmp_path / "run.sqlite"
    for kill in range(4):
        last = int(killed_after(started(code, path), lines=1 + 20 * kill, delay=0.003 * kill))
        with open_store(path) as store:
            kept = store.trials("r", SPACE)
            assert len(kept) - last in (1, 2), "all that were said to be kept, and at most one more"
            assert kept == [trial(number) for number in range(len(kept))]
            assert set(store.pending("r", SPACE)) <= {len(kept)}
            state = store.load_state("r")
            assert state.told == state.content["told"] >= last


def test_a_store_killed_while_it_is_made_is_made_anew(tmp_path):
    code = """
        import os, signal, sys
        from niwaki.store import engine
        whole = os.link
        os.link = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        engine.open_store(sys.argv[1])
    """
    process = started(code, tmp_path / "run.sqlite")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run.sqlite").exists()
    with open_store(tmp_path / "run.sqlite") as store:
        assert store.runs() == []


def test_a_checkpoint_killed_at_any_instant_is_the_new_one_or_the_one_before(tmp_path):
    code = """
        import sys
        from niwaki.store.checkpoint import *
        from niwaki.testing.toy import toy_arrays
        import numpy as np
        found = load_checkpoint(sys.argv[1])
        step = found.metadata["step"] + 1 if found else 0
        while True:
            save_checkpoint(sys.argv[1], {**toy_arrays(step), "large": np.full(200_000, step)}, {"step": step})
            print(step, flush=True)
            step += 1
    """
    path = tmp_path / "search.safetensors"
    for kill in range(5):
        last = int(killed_after(started(code, path), lines=1 + kill, delay=0.0023 * kill))
        found = load_checkpoint(path)
        assert found.metadata["step"] in (last, last + 1)
        assert (found.arrays["large"] == found.metadata["step"]).all()
    left = {file.name for file in tmp_path.iterdir()}
    assert left <= {path.name, previous_path(path).name, f".{path.name}.partial"}, "kills do not pile up files"


# ---------------------------------------------------------------- full, read-only, locked, damaged


def test_a_full_disk_loses_nothing_and_is_named(tmp_path):
    with open_store(tmp_path / "run.sqlite") as store:
        for number in range(50):
            store.append("r", trial(number))
        with store._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={connection.exec_driver_sql('PRAGMA page_count').scalar()}")
        with pytest.raises(StoreError, match=r"could not keep the state of 'r': the disk is full"):
            store.save_state("r", {"long": "x" * 100_000}, told=50)
        assert store.load_state("r") is None
    with open_store(tmp_path / "run.sqlite") as store:  # there is room again
        store.save_state("r", {"long": "x" * 100_000}, told=50)
        assert store.trials("r", SPACE) == [trial(number) for number in range(50)]


@pytest.fixture
def small_files_only():
    """No file of this process may grow past 64 kB: the kernel's own refusal, in place of a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_store_that_cannot_grow_says_so_and_keeps_what_it_has(tmp_path, small_files_only):
    with open_store(tmp_path / "run.sqlite") as store:
        store.append("r", trial(0))
        with pytest.raises(StoreError, match=r"run\.sqlite could not .*disk is full"):
            store.set_fact("large", "x" * 200_000)
        assert store.trials("r", SPACE) == [trial(0)]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, small_files_only):
    path = tmp_path / "search.safetensors"
    save_checkpoint(path, toy_arrays(), {"step": 1})
    with pytest.raises(StoreError, match=r"search\.safetensors cannot be written.*untouched"):
        save_checkpoint(path, {"large": np.zeros(100_000)}, {"step": 2})
    assert load_checkpoint(path).metadata == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file" / "run.sqlite", Path("/proc/nothing/run.sqlite")):
        with pytest.raises(StoreError, match=f"the store {where} cannot be made"):
            open_store(where)
        with pytest.raises(StoreError, match="cannot be written"):
            save_checkpoint(where, {}, {})
    with pytest.raises(StoreError, match="there is no store"):
        open_store(tmp_path / "none.sqlite", read_only=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, to whom a read-only folder is read-only")
def test_a_store_in_a_read_only_folder_can_be_read_but_not_opened_for_writing():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_store(folder / "run.sqlite") as store:
            store.append("r", trial(0))
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        outcomes = []
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                with open_store(folder / "run.sqlite", read_only=True) as store:
                    outcomes.append(str(len(store.trials("r", SPACE))))
                try:
                    open_store(folder / "run.sqlite")
                except StoreError as error:
                    outcomes.append(str(error))
                try:
                    save_checkpoint(folder / "search.safetensors", {}, {})
                except StoreError as error:
                    outcomes.append(str(error))
            except BaseException as error:
                outcomes.append(repr(error))
            finally:
                os.write(write, "\n".join(outcomes).encode())
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read().split("\n")
        folder.chmod(stat.S_IRWXU)
    assert len(said) == 3, said
    assert said[0] == "1"
    assert "read-only" in said[1]
    assert "Permission denied" in said[2]


def test_a_store_that_another_process_is_writing_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE_S", 0.1)
    with open_store(tmp_path / "run.sqlite") as store:
        other = sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="could not keep trial 0 of 'r': another process is writing"):
            store.append("r", trial(0))
        assert store.trials("r", SPACE) == [], "reading does not wait"
        other.execute("ROLLBACK")
        other.close()
        store.append("r", trial(0))
        assert len(store.trials("r", SPACE)) == 1


def test_a_store_of_a_newer_version_is_refused_naming_both(tmp_path):
    path = tmp_path / "run.sqlite"
    open_store(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(VERSION + 1),))
    raw.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=f"newer version: {VERSION + 1}, where this niwaki reads and writes {VERSION}"):
            open_store(path, read_only=read_only)
    assert path.read_bytes() == before, "what is refused is left as it is"


def test_a_store_cut_short_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "run.sqlite"
    with open_store(path) as store:
        for number in range(200):
            store.append("r", trial(number))
    whole = path.read_bytes()
    for length in (0, 1, 99, 100, 5000, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        for read_only in (True, False):
            with pytest.raises(StoreError, match="cut short"):
                open_store(path, read_only=read_only)
        assert path.read_bytes() == whole[:length]
    path.write_bytes(whole)
    with open_store(path) as store:
        assert len(store.trials("r", SPACE)) == 200


def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path):
    text, database = tmp_path / "text.sqlite", tmp_path / "other.sqlite"
    text.write_text("not a database\n" * 1000)
    with sqlite3.connect(database) as raw:
        raw.execute("CREATE TABLE meta_of_another (x)")
    raw.close()
    for path, says in ((text, "no store at all"), (database, "no store of niwaki")):
        before = path.read_bytes()
        with pytest.raises(StoreError, match=says):
            open_store(path, read_only=True)
        with pytest.raises(StoreError, match=says):
            open_store(path)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="no URL of a database"):
        open_store("nonsense://host/name")


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "deep" / "search.safetensors"
    metadata = {"step": 3, "history": [{"loss": 0.1 + 0.2, "note": "ü"}], "none": None}
    arrays = {**toy_arrays(), "turned": np.arange(6.0).reshape(2, 3).T, "half": np.ones(2, np.float16), "tiny": np.arange(3, dtype="u1")}
    assert load_checkpoint(path) is None
    save_checkpoint(path, arrays, metadata)
    found = load_checkpoint(path)
    assert (found.metadata, found.note) == (metadata, "")
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].flags.writeable


def test_equal_checkpoints_are_equal_files_whatever_the_order_or_the_process():
    arrays, metadata = toy_arrays(), {"b": 1, "a": {"d": [2], "c": 3}}
    shuffled = pack(dict(reversed(arrays.items())), {"a": {"c": 3, "d": [2]}, "b": 1})
    code = """
        import hashlib
        from niwaki.store.checkpoint import pack
        from niwaki.testing.toy import toy_arrays
        print(hashlib.sha256(pack(toy_arrays(), {"b": 1, "a": {"d": [2], "c": 3}})).hexdigest())
    """
    assert shuffled == pack(arrays, metadata)
    assert started(code).communicate()[0].strip() == hashlib.sha256(shuffled).hexdigest()


def test_a_checkpoint_cut_short_anywhere_or_with_any_byte_changed_is_noticed():
    data = pack(toy_arrays(), {"step": 7})
    for length in range(0, len(data), 7):
        with pytest.raises(StoreError, match=r"cut short|checksum"):
            unpack(data[:length])
    rng = np.random.default_rng(0)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        try:
            arrays, metadata = unpack(bytes(changed))
        except StoreError:
            continue
        # the padding and spelling of the header carry no content; nothing that is content may differ
        assert metadata == {"step": 7}
        assert pack(arrays, metadata) == data


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    path = tmp_path / "search.safetensors"
    for step in range(3):
        save_checkpoint(path, toy_arrays(step), {"step": step})
    assert load_checkpoint(path).metadata == {"step": 2}
    for damage in (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-1] + b"\x07"):
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        found = load_checkpoint(path)
        assert found.metadata == {"step": 1}
        assert "search.safetensors cannot be read" in found.note
        assert "went on from search.previous.safetensors" in found.note
        path.write_bytes(whole)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "search.safetensors"
    for step in range(2):
        save_checkpoint(path, {}, {"step": step})
    path.write_bytes(b"damaged")
    save_checkpoint(path, {}, {"step": 2})
    path.write_bytes(b"damaged, too")
    assert load_checkpoint(path).metadata == {"step": 0}


def test_two_damaged_checkpoints_are_an_error_naming_both(tmp_path):
    path = tmp_path / "search.safetensors"
    for step in range(2):
        save_checkpoint(path, {}, {"step": step})
    path.write_bytes(b"")
    previous_path(path).write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"search\.safetensors cannot be read .*search\.previous\.safetensors cannot be read"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_nothing_is_pickled_or_unpickled(tmp_path):
    path = tmp_path / "search.safetensors"
    with pytest.raises(StoreError, match="'bomb' is of object"):
        save_checkpoint(path, {"bomb": np.array([Bomb()])}, {})
    with pytest.raises(StoreError, match="must be JSON"):
        save_checkpoint(path, {}, {"bomb": Bomb()})
    with pytest.raises(StoreError, match="must be JSON"):
        save_checkpoint(path, {}, {"loss": float("nan")})
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StoreError, match="cannot be read"):
        load_checkpoint(path)
