"""Settings with the values that `tokenstream tune` has found for the model on this machine."""

from __future__ import annotations

import logging

from app.config.settings import Settings
from app.fit import tuned_file
from app.fit.tuned_file import Conditions
from app.fit.tuning import described
from app.weights.errors import ModelError
from app.weights.model import model_here

logger = logging.getLogger("tokenstream.service")


def with_tuned(settings: Settings) -> Settings:
    """The settings with tuned values. Values that are set take precedence.

    A model that is not downloaded yet has no tuned values.

    Raises:
        TunedFileError: TUNED_FILE is not valid.
    """
    place = settings.tuned_file or tuned_file.default_place()
    if settings.model_gpu_layers or not place.exists():
        return settings
    try:
        source = model_here(settings)
    except ModelError:
        return settings  # the search for the model reports it
    if source is None:
        return settings
    tuned = tuned_file.read(place, Conditions.of(source, settings.quantize))
    values = {name: value for name, value in tuned.items() if name not in settings.model_fields_set}
    if not values:
        return settings
    logger.info("tuned settings of %s: %s", place, described(values))
    # The values do not count as set: another model has others.
    return settings.model_construct(settings.model_fields_set, **{**dict(settings), **values})
