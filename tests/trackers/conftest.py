"""Fixtures of the trackers' tests."""

import os
import signal

import pytest
from tracker_views import MLFLOW, start_mlflow


@pytest.fixture(scope="session")
def mlflow_address(tmp_path_factory):
    """The address of a real MLflow server with SQLite. One that runs already can be given."""
    if (given := os.environ.get(MLFLOW, "")).startswith("http://"):
        yield given
        return
    server, address = start_mlflow(tmp_path_factory.mktemp("mlflow"))
    yield address
    os.killpg(server.pid, signal.SIGTERM)  # the server and its workers are a group of their own
    server.wait(timeout=60)
