"""What a library says of its own work is not heard; what went wrong is."""

from __future__ import annotations

import logging
import warnings

import pytest

from l2c_export.support.log import quiet


def test_a_library_is_quiet_and_then_as_it_was(caplog):
    logger = logging.getLogger("some_library")
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet("some_library"):
            warnings.warn("renamed axes", stacklevel=1)
            logger.warning("renamed, too")
            logger.error("no such axis")
        warnings.warn("later", stacklevel=1)
        logger.info("later, too")
    assert [str(warning.message) for warning in heard] == ["later"]
    assert [record.getMessage() for record in caplog.records] == ["no such axis", "later, too"]


def test_a_failure_is_raised_and_leaves_the_level_as_it_was():
    logger = logging.getLogger("some_library")
    logger.setLevel(logging.DEBUG)
    with pytest.raises(ValueError, match="no such axis"), quiet("some_library"):
        raise ValueError("no such axis")
    assert logger.level == logging.DEBUG
