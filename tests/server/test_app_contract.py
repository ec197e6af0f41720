"""What `server/app.py` takes from Flower that Flower does not promise to keep.

`look_again_soon` puts another function in the place of one of Flower's. Should Flower rename
it or call it otherwise, nothing would break: rounds would only take a second longer each.
"""

import inspect

import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid

from fedpact.server.app import _UPLOAD_POLL_SECONDS, look_again_soon


@pytest.fixture
def _looks_soon(monkeypatch):
    monkeypatch.setattr(http_grid, "pull_objects", pull_objects)  # put back after the test
    look_again_soon()


def test_flowers_grid_pulls_objects_by_the_function_that_is_replaced():
    assert http_grid.pull_objects is pull_objects
    assert "pull_objects" in http_grid.HttpGrid.pull_messages.__code__.co_names


@pytest.mark.usefixtures("_looks_soon")
def test_the_function_in_its_place_can_be_called_as_flowers_grid_calls_it():
    assert http_grid.pull_objects is not pull_objects
    signature = inspect.signature(http_grid.pull_objects)
    assert signature.parameters["initial_backoff"].default == _UPLOAD_POLL_SECONDS
    signature.bind(object_ids=[], pull_object_fn=bytes)


@pytest.mark.usefixtures("_looks_soon")
def test_an_object_that_is_still_being_uploaded_is_looked_for_again():
    looks = []

    def pull(object_id):
        looks.append(object_id)
        if len(looks) < 3:
            raise ObjectUnavailableError(object_id)
        return b"content"

    pulled = http_grid.pull_objects(object_ids=["a"], pull_object_fn=pull)
    assert (pulled, looks) == ({"a": b"content"}, ["a"] * 3)
