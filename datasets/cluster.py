"""Workers of a build: processes of this machine, or those of a Dask scheduler.

Both are ``dask.distributed``. Workers of this machine are started by spawning, have one thread each, and end with the
process that started them, however that ends. One that dies is replaced.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator

import dask
from distributed import Client, LocalCluster

from skyshift.errors import SkyshiftError

ANSWER_WITHIN = 10.0
"""Seconds in which a scheduler must answer."""


@contextlib.contextmanager
def _local(workers: int, retries: int) -> Iterator[Client]:
    settings = {
        "distributed.scheduler.allowed-failures": retries,  # deaths of workers that one shard may cause
        # One task a worker, none in waiting: a death counts against the shard that was being built, and no other.
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.worker.multiprocessing-method": "spawn",
        # Memory is the system's business: the shares that Dask would give would pause workers at large galaxies.
        "distributed.worker.memory.terminate": False,
        "distributed.comm.timeouts.connect": "60s",  # of a worker that is just starting on a busy machine
    }
    with (
        dask.config.set(settings),
        tempfile.TemporaryDirectory(prefix="skyshift-", ignore_cleanup_errors=True) as scratch,
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # a free port; None would take 8787 and complain where it is taken
            memory_limit=0,
            local_directory=scratch,
            security=True,  # TLS with keys of this run: else any user of this machine could have code run on a worker
            silence_logs=logging.CRITICAL + 1,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextlib.contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=ANSWER_WITHIN, set_as_default=False)
    except TypeError as error:  # distributed's word for a TLS address without keys
        raise SkyshiftError(
            f"the scheduler {address} cannot be reached ({error}); a tls:// address needs the keys of Dask's "
            "configuration (distributed.comm.tls)"
        ) from error
    except (OSError, ValueError) as error:
        raise SkyshiftError(
            f"the scheduler {address} does not answer within {ANSWER_WITHIN:g} s ({error}); start one (dask scheduler) "
            "and its workers (dask worker ADDRESS), mend the address, or leave --scheduler out to build on this machine"
        ) from error
    with client:
        yield client


@contextlib.contextmanager
def connect(scheduler: str, workers: int, retries: int) -> Iterator[Client]:
    """A client whose workers build.

    Args:
        scheduler: Address of a scheduler, or empty to start workers on this machine.
        workers: How many to start on this machine.
        retries: How many workers one task may lose before it is given up; a scheduler elsewhere has its own number
            (``distributed.scheduler.allowed-failures``).

    Yields:
        The client. What is still running when the block ends is cancelled.

    Raises:
        SkyshiftError: The scheduler does not answer.
    """
    with _remote(scheduler) if scheduler else _local(workers, retries) as client:
        yield client
