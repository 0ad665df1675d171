"""The data sets that download can read: one frozen `Source` record each, looked up by `download.<role>.source`.

The form of a record, of its `Row`s and of its options is written at the head of `stages/sources/records.py`.
"""

from __future__ import annotations

from stages.sources.drawn import DRAWN
from stages.sources.mebeauty import MEBEAUTY
from stages.sources.people import LFW, PEOPLE
from stages.sources.records import Source
from stages.sources.table import TABLE
from stages.sources.utkface import UTKFACE

SOURCES: dict[str, Source] = {source.name: source for source in (DRAWN, UTKFACE, LFW, PEOPLE, MEBEAUTY, TABLE)}
