"""A canvas: chunks, threads, workers and torch make one and the same map."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from skyshift.datasets.projection import Canvas, project
from skyshift.errors import SkyshiftError


@pytest.fixture(scope="module")
def galaxy():
    """20,000 positions and supports in kpc: from points to kernels on coarse lattices."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 12, (20_000, 3)), rng.exponential(1, 20_000) ** 2


def test_chunks_make_the_map_of_the_whole(galaxy):
    position, support = galaxy
    weights = np.random.default_rng(13).random((2, len(position)))
    canvas = Canvas(60.0, 64, 2, depth=50.0)
    assert not canvas.maps().any()
    for part in np.array_split(np.argsort(support), 7):  # the widest last: the coarse lattices appear on the way
        canvas.add(position[part], support[part], weights[:, part])
        canvas.add(np.empty((0, 3)), np.empty(0), np.empty((2, 0)))
    whole = project(position, support, weights, side=60.0, pixels=64, depth=50.0)
    np.testing.assert_allclose(canvas.maps(), whole, rtol=1e-11)  # rounding of sums


def test_any_layout_and_type_of_array_gives_the_same_map(galaxy):
    position, support = (a.astype(np.float32) for a in galaxy)
    expected = project(position.astype(float), support.astype(float), np.ones(len(support)), side=60.0, pixels=32)
    frozen = np.asfortranarray(position), support, np.ones(len(support), np.int64)
    for array in frozen:
        array.flags.writeable = False
    for device in (None, "cpu"):
        np.testing.assert_allclose(project(*frozen, side=60.0, pixels=32, device=device), expected, rtol=1e-11)


def test_threads_change_rounding_only_and_repeat_bit_for_bit(galaxy):
    position, support = (np.concatenate([a] * 4) for a in galaxy)  # enough particles for four threads
    weights = np.random.default_rng(14).random(len(position))
    maps = {t: project(position, support, weights, side=60.0, pixels=64, threads=t) for t in (1, 2, 3, 4)}
    for threads, map_ in maps.items():
        np.testing.assert_allclose(map_, maps[1], rtol=1e-12)
        again = project(position, support, weights, side=60.0, pixels=64, threads=threads)
        np.testing.assert_array_equal(again, map_)
    assert any((maps[t] != maps[1]).any() for t in (2, 3, 4))  # the threads were there


def test_canvases_in_several_threads_of_the_caller_do_not_meet(galaxy):
    position, support = (np.concatenate([a] * 2) for a in galaxy)
    arguments = {"side": 60.0, "pixels": 64, "threads": 2}
    expected = [project(position, support, np.full(len(position), w), **arguments) for w in (1.0, 2.0, 3.0)]
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(project, position, support, np.full(len(position), w), **arguments) for w in (1.0, 2.0, 3.0)
        ]
        for job, map_ in zip(jobs, expected, strict=True):
            np.testing.assert_array_equal(job.result(), map_)


def test_what_numba_compiled_is_kept_on_disk_and_found_again():
    project(np.zeros((1, 3)), np.full(1, 40.0), np.ones(1), side=10, pixels=10)
    code = (
        "import numpy as np; from skyshift.datasets import projection_numba as n, projection as p;"
        "p.project(np.zeros((1, 3)), np.full(1, 40.0), np.ones(1), side=10, pixels=10);"
        "print(sum(n.deposit.stats.cache_hits.values()), sum(n.deposit.stats.cache_misses.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_project_with_threads_after_the_parent_did(galaxy, start):
    position, support = (np.concatenate([a] * 2) for a in galaxy)
    call = partial(project, position, support, np.ones(len(position)), side=60.0, pixels=32, threads=2)
    expected = call()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        # The last lattice is a matrix product, whose last bit depends on where in memory a process puts its arrays.
        np.testing.assert_allclose(pool.submit(call).result(timeout=120), expected, rtol=1e-14)


def test_torch_and_numba_make_the_same_map(galaxy):
    position, support = galaxy
    rng = np.random.default_rng(15)
    support = support * rng.choice([0, 0.01, 0.3, 1, 3], len(support))
    weights = rng.random((2, len(position)))
    for pixels in (64, 101):
        arguments = {"side": 60.0, "pixels": pixels, "depth": 100.0}
        expected = project(position, support, weights, **arguments)
        map_ = project(position, support, weights, device="cpu", **arguments)
        # The same formulas in float64; the order of sums differs.
        np.testing.assert_allclose(map_, expected, rtol=1e-11, atol=1e-14 * expected.max())
    assert Canvas(1.0, 4, 1, device="cpu").maps().shape == (1, 4, 4)


def test_torch_agrees_on_particles_at_and_beyond_the_edge():
    rng = np.random.default_rng(16)
    position, support = rng.uniform(-100, 100, (2000, 3)), 10 ** rng.uniform(-2, 3, 2000)
    maps = [project(position, support, np.ones(2000), side=33, pixels=33, device=device) for device in (None, "cpu")]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-11)
    far = np.array([[1e300, 0, 0], [0, -1e25, 0]])
    assert not project(far, np.array([0.0, 3.0]), np.ones(2), side=4, pixels=4, device="cpu").any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_same_map(galaxy):
    position, support = galaxy
    maps = [project(position, support, np.ones(len(support)), side=60.0, pixels=64, device=d) for d in (None, "cuda")]
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-11)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", r"device 'cuda:99' is not there, torch sees \d+ GPUs; leave device out"),
        ("graphics", "'graphics' is no torch device; 'cuda', 'cuda:1' and 'cpu' are"),
        ("meta", "device 'meta' lacks float64"),
    ],
)
def test_a_device_that_is_not_there_is_named(device, message):
    with pytest.raises(SkyshiftError, match=message):
        Canvas(1.0, 4, 1, device=device)


MEMORY = """
import resource, numpy as np
from skyshift.datasets.projection import Canvas
rng = np.random.default_rng(0)
canvas = Canvas(100.0, 256, 2, threads=2)
def feed(chunks):
    for _ in range(chunks):
        n = 200_000
        canvas.add(rng.normal(0, 20, (n, 3)), rng.exponential(1.0, n), rng.random((2, n)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
few = feed(3)
print(few, feed(12), canvas.maps().sum() * (100 / 256) ** 2)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_chunks():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    few, many, mass = (float(value) for value in done.stdout.split())
    # Twelve chunks more hold 115 MB of particles; what the allocator keeps between chunks is less than one of them.
    assert many - few < 10e6
    assert mass > 0.9 * 3e6 / 2 * 2


# Errors


def test_a_bad_chunk_leaves_the_canvas_as_it_was():
    canvas = Canvas(4.0, 4, 2)
    canvas.add(np.zeros((1, 3)), np.ones(1), np.ones((2, 1)))
    before = canvas.maps()
    bad = [
        (np.zeros((2, 3)), np.array([1, -1.0]), np.ones((2, 2)), "1 supports are negative"),
        (np.zeros((2, 3)), np.array([1, np.nan]), np.ones((2, 2)), "'support' holds 1 values"),
        (np.zeros((2, 3)), np.ones(2), np.ones((3, 2)), "this canvas has 2 maps, but 3 weights came"),
        (np.zeros((2, 3)), np.array([1, 1e300]), np.ones((2, 2)), "a support of 1e.300 kpc is too wide"),
    ]
    for *chunk, message in bad:
        with pytest.raises(SkyshiftError, match=message):
            canvas.add(*chunk)
    np.testing.assert_array_equal(canvas.maps(), before)


def test_a_canvas_needs_a_map_and_a_thread():
    for arguments, options, message in (
        ((4.0, 4, 0), {}, "at least 1 weight and 1 thread, not 0 and 1"),
        ((4.0, 4, 1), {"threads": 0}, "at least 1 weight and 1 thread, not 1 and 0"),
        ((-4.0, 4, 1), {}, "side must be positive and finite"),
    ):
        with pytest.raises(SkyshiftError, match=message):
            Canvas(*arguments, **options)
    with pytest.raises(SkyshiftError, match="at least one weight is needed"):
        project(np.zeros((2, 3)), np.ones(2), np.empty((0, 2)), side=1.0, pixels=4)
