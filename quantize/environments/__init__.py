"""Interpreters of their own, with pinned packages, for methods and engines whose libraries clash with the program's."""

from quantize.environments.keeping import Note, clean, remove, remove_outdated
from quantize.environments.listing import Entry, entries
from quantize.environments.making import create
from quantize.environments.pins import SHIPPED, Pins, names, read
from quantize.environments.places import Environment, Made, locate, root, variable

__all__ = [
    "SHIPPED",
    "Entry",
    "Environment",
    "Made",
    "Note",
    "Pins",
    "clean",
    "create",
    "entries",
    "locate",
    "names",
    "read",
    "remove",
    "remove_outdated",
    "root",
    "variable",
]
