"""Samples to run a model on: read from files or the user's code, or drawn at random.

Every source becomes a `Data`: an iterable of feed dictionaries that can be iterated again and again.
"""

from .feeds import Data, Feed
from .inputs import InputSpec, input_specs
from .sources import load_data
from .synthetic import random_feeds

__all__ = ["Data", "Feed", "InputSpec", "input_specs", "load_data", "random_feeds"]
