"""A page of Prometheus metrics, read back: sums over workers, values by label, quantiles of histograms. Pure."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")
_BUCKET: Final = "_bucket"


class Sample(NamedTuple):
    """One line of the page."""

    labels: Mapping[str, str]
    value: float


class Exposition:
    """The samples of a page, by name. Every sample of the service has the label `worker`."""

    def __init__(self, samples: Mapping[str, list[Sample]]) -> None:
        self._samples = samples

    @classmethod
    def parse(cls, page: str) -> Exposition:
        """Of text format 0.0.4. Lines that are no samples are passed over."""
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for line in page.splitlines():
            if line.startswith("#") or (match := _SAMPLE.match(line)) is None:
                continue
            try:
                value = float(match[3])
            except ValueError:
                continue
            samples[match[1]].append(Sample(_labels(match[2] or ""), value))
        return cls(dict(samples))

    def samples(self, name: str, **labels: str) -> Iterator[Sample]:
        """Those of this name that have these labels."""
        for sample in self._samples.get(name, ()):
            if all(sample.labels.get(label) == value for label, value in labels.items()):
                yield sample

    def total(self, name: str, **labels: str) -> float:
        """Their sum, 0 if there are none."""
        return math.fsum(sample.value for sample in self.samples(name, **labels))

    def most(self, name: str, **labels: str) -> float | None:
        return max((sample.value for sample in self.samples(name, **labels)), default=None)

    def least(self, name: str, **labels: str) -> float | None:
        return min((sample.value for sample in self.samples(name, **labels)), default=None)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The sums for each value of a label."""
        found: dict[str, float] = {}
        for sample in self.samples(name, **labels):
            if label in sample.labels:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found

    def workers(self, name: str, **labels: str) -> list[str]:
        """The workers that have a sample of this name, in the order of their names."""
        return sorted(self.by("worker", name, **labels))

    def quantile(self, share: float, name: str) -> float | None:
        """The value that this share of a histogram's observations does not exceed, as far as its buckets tell:
        within one, evenly spread. None without observations; its highest bound if it is above that."""
        return quantile(share, self.by("le", f"{name}{_BUCKET}").items())


def quantile(share: float, buckets: Iterable[tuple[str, float]]) -> float | None:
    """Of a histogram's buckets, each its upper bound and how many observations are at most that."""
    ordered = sorted((float(bound), count) for bound, count in buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    wanted = share * ordered[-1][1]
    lower = before = 0.0
    for bound, count in ordered:
        if count >= wanted and count > before:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - before) / (count - before)
        lower, before = (lower if math.isinf(bound) else bound), count
    return lower


def _labels(text: str) -> dict[str, str]:
    return {
        name: _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value) if "\\" in value else value
        for name, value in _LABEL.findall(text)
    }
