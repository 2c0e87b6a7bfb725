"""Threads: the number never shows, callers may be many, forks and full machines are survived."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from blocks import NAMES, cols_of

import kvant
from distributions import distribution, importance
from kvant.reference import FORMATS
from support import run_python


@pytest.fixture(autouse=True)
def default_threads():
    yield
    kvant.set_threads(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_threads_gives_the_same_bits(name):
    cols = cols_of(name, 40_000 // FORMATS[name].block // 7 + 1)
    if FORMATS[name].can_encode:
        x = distribution("t5", 23, cols, 1)
        weights = importance(cols, 1)
        packed = [kvant.quantize(x, name, importance=weights, threads=n).data for n in range(1, 5)]
        assert all(np.array_equal(p, packed[0]) for p in packed)
        q = kvant.QTensor(packed[0], name, x.shape)
    else:
        row_bytes = kvant.format_info(name).row_bytes(cols)
        data = np.random.default_rng(0).integers(0, 256, (23, row_bytes), np.uint8)
        q = kvant.QTensor(data, name, (23, cols))
    decoded = [q.dequantize(threads=n).view(np.uint32) for n in range(1, 5)]
    assert all(np.array_equal(d, decoded[0]) for d in decoded)


def test_setting_the_number():
    default = kvant.threads()
    assert default >= 1
    kvant.set_threads(3)
    assert kvant.threads() == 3
    kvant.set_threads(100_000)
    assert 3 <= kvant.threads() <= 1024
    kvant.set_threads(0)
    assert kvant.threads() == default


@pytest.mark.parametrize(("value", "wanted"), [("1", 1), ("7", 7)])
def test_the_environment_sets_the_number(value, wanted):
    done = run_python("import kvant; print(kvant.threads())", KVANT_THREADS=value)
    assert int(done.stdout) == wanted


def test_the_default_respects_the_cpus_this_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    done = run_python(code + "import kvant; print(kvant.threads())", KVANT_THREADS="")
    assert int(done.stdout) == 1


def test_callers_in_several_python_threads():
    x = distribution("normal", 64, 4096, 0)
    jobs = [(name, n) for name in ("q4_k", "q8_0", "iq4_nl", "q4_0") for n in (1, 2, 3, 4)] * 2
    wanted = {name: kvant.quantize(x, name, threads=1).data for name, _ in jobs}
    floats = {
        name: kvant.QTensor(data, name, x.shape).dequantize(threads=1)
        for name, data in wanted.items()
    }
    start = threading.Barrier(4)

    def work(job):
        if job == "start":
            start.wait()
            return True
        name, n = job
        q = kvant.quantize(x, name, threads=n)
        return np.array_equal(q.data, wanted[name]) and np.array_equal(
            q.dequantize(threads=n), floats[name]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, ["start"] * 4 + jobs))


def test_other_python_threads_run_meanwhile():
    """While one thread is in the library for long, another counts: the GIL is released."""
    x = np.resize(distribution("normal", 64, 4096, 0), (512, 4096))
    ticks, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            ticks[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        before = ticks[0]
        # One call that lasts far longer than the switch interval of the interpreter.
        kvant.quantize(x, "q4_k", threads=1)
        inside = ticks[0] - before
    finally:
        stop.set()
        counter.join()
    assert inside > 1000


FORK = """
import os, warnings
import numpy as np, kvant
warnings.simplefilter("ignore")
x = np.random.default_rng(0).standard_normal((300, 1024)).astype(np.float32)
wanted = kvant.quantize(x, "q4_k", threads=3).data
for _ in range(20):
    child = os.fork()
    if child == 0:
        found = [kvant.quantize(x, "q4_k", threads=n).data for n in (3, 1, 4)]
        ok = all(np.array_equal(data, wanted) for data in found)
        os._exit(0 if ok else 1)
    assert np.array_equal(kvant.quantize(x, "q4_k", threads=2).data, wanted)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_have_a_pool_of_their_own():
    done = run_python(FORK, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")


FORK_WHILE_BUSY = """
import os, threading, warnings
import numpy as np, kvant
warnings.simplefilter("ignore")
x = np.random.default_rng(0).standard_normal((200, 1024)).astype(np.float32)
wanted = kvant.quantize(x, "q4_k", threads=1).data
stop = threading.Event()
def busy():
    while not stop.is_set():
        kvant.quantize(x, "q4_k", threads=2)
other = threading.Thread(target=busy)
other.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        ok = np.array_equal(kvant.quantize(x, "q4_k", threads=2).data, wanted)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
other.join()
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_in_the_middle_of_a_call():
    done = run_python(FORK_WHILE_BUSY, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")


GROWING = """
import os, warnings
import numpy as np, kvant
warnings.simplefilter("ignore")
x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
wanted = kvant.quantize(x, "q8_0", threads=1).data
for _ in range(40):
    child = os.fork()
    if child == 0:
        ok = all(
            np.array_equal(kvant.quantize(x, "q8_0", threads=n).data, wanted)
            for n in (2, 3, 4, 5, 6, 9, 12, 24)
        )
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pool_that_grows_between_calls():
    """New workers once took the call before theirs for work, and let a call end too early."""
    done = run_python(GROWING, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")


NO_THREADS = """
import resource
import numpy as np, kvant
x = np.random.default_rng(0).standard_normal((300, 1024)).astype(np.float32)
out = np.empty((300, 576), np.uint8)
wanted = kvant.quantize(x, "q4_k", threads=1).data
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (2 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
for n in (64, 64, 1):
    kvant.quantize(x, "q4_k", threads=n, out=out)
    assert np.array_equal(out, wanted)
print("fine")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_a_machine_that_gives_no_more_threads():
    done = run_python(NO_THREADS, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("fine", "")
