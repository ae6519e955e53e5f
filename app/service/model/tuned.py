"""Settings with the values that `tokenstream tune` has found for the model on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.config.settings import Settings
from app.fit import tuned_file
from app.fit.tuned_file import Conditions
from app.fit.tuning import described
from app.weights.errors import ModelError
from app.weights.model import model_here

logger = logging.getLogger("tokenstream.service")


def tuned_values(settings: Settings) -> Mapping[str, Any]:
    """Tuned values of settings that are not set, by name; empty: none.

    A model that is not downloaded yet has none.

    Raises:
        TunedFileError: TUNED_FILE is not valid.
    """
    place = place_of(settings)
    if settings.model_gpu_layers or not place.exists():
        return {}
    try:
        source = model_here(settings)
    except ModelError:
        return {}  # the search for the model reports it
    if source is None:
        return {}
    tuned = tuned_file.read(place, Conditions.of(source, settings.quantize))
    return {name: value for name, value in tuned.items() if name not in settings.model_fields_set}


def with_tuned(settings: Settings) -> Settings:
    """The settings with tuned values. Values that are set take precedence.

    Raises:
        TunedFileError: TUNED_FILE is not valid.
    """
    values = tuned_values(settings)
    if not values:
        return settings
    logger.info("tuned settings of %s: %s", place_of(settings), described(values))
    # The values do not count as set: another model has others.
    return settings.model_construct(settings.model_fields_set, **{**dict(settings), **values})


def place_of(settings: Settings) -> Path:
    """TUNED_FILE, or its default."""
    return settings.tuned_file or tuned_file.default_place()
