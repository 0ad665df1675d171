"""The data sets that download can read: one frozen `Source` record each, looked up by
`download.<role>.source`.

The form of a record, of its `ManifestRow`s and of its options is written at the head of
`stages/ingest/records.py`.
"""

from __future__ import annotations

from stages.ingest.records import Source
from stages.sources.aaf import AAF
from stages.sources.adience import ADIENCE
from stages.sources.appa_real import APPA_REAL
from stages.sources.cacd import CACD
from stages.sources.cfd import CFD
from stages.sources.chalearn import CHALEARN
from stages.sources.fg_net import FG_NET
from stages.sources.folder_per_person import LFW, PEOPLE
from stages.sources.imdb_wiki import IMDB_WIKI
from stages.sources.mebeauty import MEBEAUTY
from stages.sources.morph import MORPH
from stages.sources.ms_celeb import MS_CELEB
from stages.sources.scut_fbp import SCUT_FBP
from stages.sources.scut_fbp5500 import SCUT_FBP5500
from stages.sources.synthetic import SYNTHETIC
from stages.sources.table import TABLE
from stages.sources.utkface import UTKFACE

SOURCES: dict[str, Source] = {
    "synthetic": SYNTHETIC,
    "utkface": UTKFACE,
    "lfw": LFW,
    "people": PEOPLE,
    "mebeauty": MEBEAUTY,
    "chalearn": CHALEARN,
    "appa_real": APPA_REAL,
    "morph": MORPH,
    "fg_net": FG_NET,
    "cacd": CACD,
    "imdb_wiki": IMDB_WIKI,
    "aaf": AAF,
    "adience": ADIENCE,
    "scut_fbp": SCUT_FBP,
    "scut_fbp5500": SCUT_FBP5500,
    "cfd": CFD,
    "ms_celeb": MS_CELEB,
    "table": TABLE,
}
