"""The night, for the page, the report and the messages: records and telemetry in, one frozen `Night` out.

read.py        looks at the queue, the telemetry and the files    (the only module here that does)
records.py     what it found
build.py       night(records) -> Night, pure; lanes, failures, best, verdict, foretold are its parts
model.py       Night, and its JSON
span.py        which hours a night is
"""

from daemon.night.build import night
from daemon.night.model import Colour, Night
from daemon.night.read import calendar, read_last, read_named, read_since
from daemon.night.records import Records

__all__ = ["Colour", "Night", "Records", "calendar", "night", "read_last", "read_named", "read_since"]
