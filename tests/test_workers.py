"""Jobs on processes of their own: the results that one process gives, every failure told, nothing left behind."""

import operator
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import pytest

from niwaki.run.folder import Folder
from niwaki.run.progress import Silent
from niwaki.run.workers import Job, JobFailed, Workers


@pytest.fixture
def folder(tmp_path):
    opened = Folder(tmp_path / "run", asked={"test": "workers"})
    yield opened
    opened.close()


def script(folder, jobs, more=""):
    """A file that runs `jobs`, written as Python, on two workers and prints the results."""
    (folder / "script.py").write_text(
        f"import sys, time\nfrom niwaki.run.folder import Folder\nfrom niwaki.run.progress import Silent\n"
        f"from niwaki.run.workers import Job, Workers\n{more}\n"
        f"with Workers(2) as pool:\n    print(pool.run({jobs}, Folder(sys.argv[1], asked={{}}), Silent(), 'work'))\n"
    )
    return [sys.executable, folder / "script.py", folder / "run"]


def test_two_processes_give_what_one_gives_and_a_failure_is_told(folder):
    jobs = [Job(f"sum {i}", sum, ([i, 1],)) for i in range(5)]
    with Workers(2) as pool:
        results = pool.run(jobs, folder, Silent(), "sums")
        assert results == {f"sum {i}": i + 1 for i in range(5)}
        with pytest.raises(JobFailed, match=r"(?s)'wrong' failed:.*TypeError"):
            pool.run([Job("wrong", sum, (3,)), Job("slow", sum, ([1],))], folder, Silent(), "wrong")
    with Workers(1) as here:
        assert here.run(jobs, folder, Silent(), "sums") == results


def test_what_all_jobs_share_comes_before_their_own_arguments(folder):
    numbers = [3 * number for number in range(500_000)]  # far more than a pipe holds
    for count in (1, 2):
        with Workers(count, common=(numbers,)) as pool:
            jobs = [Job(f"{count} workers, {at}", operator.getitem, (at,)) for at in (0, 7, 499_999)]
            assert list(pool.run(jobs, folder, Silent(), "look up").values()) == [0, 21, 1_499_997]


def test_a_job_that_its_process_cannot_read_is_a_failure_and_the_next_one_is_read(folder, monkeypatch):
    only_here = ModuleType("only_here")
    exec("def work(content):\n    return len(content)\n", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    jobs = [Job(f"unreadable {at}", only_here.work, (bytes(2_000_000),)) for at in range(2)]
    with Workers(2) as pool:
        for _ in range(2):
            with pytest.raises(JobFailed, match=r"(?s)'unreadable \d' failed:.*No module named 'only_here'"):
                pool.run(jobs, folder, Silent(), "unreadable")
        assert pool.run([Job("sum", sum, ([1, 2],))], folder, Silent(), "sum") == {"sum": 3}


@pytest.mark.parametrize(
    ("death", "told"),
    [
        (Job("dead", os._exit, (3,)), r"worked on 'dead' ended with status 3\."),
        (Job("dead", signal.raise_signal, (signal.SIGKILL,)), r"worked on 'dead' was killed; it may have run out of memory"),
    ],
    ids=["ended", "killed"],
)
def test_a_process_that_dies_is_told_and_what_others_gave_is_kept(folder, death, told):
    jobs = [Job(f"sum {i}", sum, ([i, 1],)) for i in range(3)]
    with Workers(2) as pool, pytest.raises(JobFailed, match=told):
        pool.run([*jobs, death], folder, Silent(), "sums")
    kept = [folder.store.fact(f"result {job.name}") for job in jobs]
    assert sum(result is not None for result in kept) >= 2, "one may have been under way, in the other process"
    with Workers(2) as pool:
        assert list(pool.run(jobs, folder, Silent(), "sums").values()) == [1, 2, 3]


def test_a_script_without_a_guard_may_use_workers_and_what_a_job_prints_is_no_answer(tmp_path):
    (tmp_path / "printing.py").write_text("def work(n):\n    print('a job prints')\n    return n + 1\n")
    command = script(tmp_path, "[Job(str(n), work, (n,)) for n in range(3)]", "from printing import work")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "{'0': 1, '1': 2, '2': 3}\n")
    assert done.stderr.count("a job prints") == 3


def test_whatever_lies_in_the_current_folder_is_not_imported(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "random.py").write_text("raise SystemExit('a random.py of the user was imported')\n")
    done = subprocess.run(script(tmp_path, "[Job('1', sum, ([1],))]"), cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'1': 1}\n", "")


@pytest.mark.parametrize("seconds", [1.0, 8.0])
def test_ctrl_c_is_heard_by_the_caller_alone_and_ends_all_processes(tmp_path, seconds):
    """seconds: after which it is pressed: while the processes import, or work."""
    command = script(tmp_path, "[Job(str(n), time.sleep, (600,)) for n in range(2)]", "print('here', flush=True)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        process.stdout.readline()
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert told.count("Traceback") == 1
    assert told.endswith("KeyboardInterrupt\n")
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, 0)


def test_with_the_death_of_their_caller_the_processes_end(tmp_path):
    command = script(tmp_path, "[Job(str(n), time.sleep, (600,)) for n in range(2)]", "print('here', flush=True)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        process.stdout.readline()
        time.sleep(8)  # until they sleep
        process.kill()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("a process goes on without its caller")


def test_no_job_begins_after_the_stop_and_what_is_done_is_kept(folder):
    jobs = [Job(f"sum {i}", sum, ([i, 1],)) for i in range(5)]
    for count in (1, 2):
        asked = iter([False, False, True, True, True, True])
        with Workers(count) as pool:
            done = pool.run(jobs, folder, Silent(), "sums", stop=lambda results: next(asked))  # noqa: B023
        assert done == {f"sum {i}": i + 1 for i in range(2 * count)}
