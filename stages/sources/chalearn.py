"""ChaLearn LAP 2015 and 2016: apparent age, the mean of many guesses; sigma is their standard
deviation.

2015: `Train.csv`, `Validation.csv` with lines `image_1.jpg;mean;deviation` and no header; a later
copy of the lists has commas. 2016: `train_gt.csv`, `valid_gt.csv`, `test_gt.csv` with the header
`image,mean,stdv`. One reader takes both, because it looks at every line. Deviation 0 (29 photos of
2016) is kept: it means that everybody said the same, and the epsilon-error counts it as 1e-10;
`finetune.loss.min_sigma` keeps the training target wide enough.

Which list trains and which tests is the options' `split` of each list. DLDL-v2 trains on 2015's
Train and tests on its Validation, and trains on 2016's train and valid together and tests on its
test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.ingest.records import ManifestRow, ReportSkip, Source
from stages.sources.label_lists import LabelList, Listed, listed_rows, read_lines


@dataclass(frozen=True, kw_only=True)
class ChalearnOptions:
    """`lists`: the lists to take; photos of other lists are named in skipped.csv."""

    lists: tuple[LabelList, ...]


def chalearn_rows(
    raw_dir: Path, options: ChalearnOptions, report_skip: ReportSkip
) -> Iterator[ManifestRow]:
    """Every listed photo becomes a row with the mean and the deviation of its guesses."""
    yield from listed_rows(raw_dir, _lines(options, report_skip), report_skip)


def _lines(options: ChalearnOptions, report_skip: ReportSkip) -> Iterator[Listed]:
    for each in options.lists:
        for line_number, fields in read_lines(each.file):
            where = f"{each.file.name}:{line_number}"
            if len(fields) != 3 or not fields[0]:
                report_skip(where, f"expected a photo's name, mean and deviation, found {fields}")
                continue
            yield Listed(each.photo_id(fields[0]), fields[1], fields[2], each.split, where)


CHALEARN = Source(name="chalearn", options=ChalearnOptions, rows=chalearn_rows, produce=None)
