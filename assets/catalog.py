"""The families of the data side, as `training.catalog` has those of the model side. Imports nothing heavy."""

from training.catalog import Family

JOINS = Family("join", {"key": "assets.joins.key:KeyJoin"})
