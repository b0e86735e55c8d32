"""What a run has measured so far, and medians over its rounds."""

from dataclasses import asdict, dataclass, field
from statistics import median

from measure import Idle, Sample


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass
class Results:
    """A run. `about` describes it: date, machine, versions, options."""

    about: dict
    samples: list[Sample] = field(default_factory=list)
    idles: list[Idle] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, result: Sample | Idle) -> None:
        """Takes in what a turn yields."""
        (self.samples if isinstance(result, Sample) else self.idles).append(result)

    def by_round(self, system: str, job: str, metric: str) -> dict[int, float]:
        """A metric's value of each round that has one."""
        return {
            sample.round: getattr(sample, metric)
            for sample in self.samples
            if sample.system == system and sample.job == job and getattr(sample, metric) is not None
        }

    def spread(self, system: str, job: str, metric: str) -> Spread | None:
        """Over the rounds; None where nothing was measured."""
        values = list(self.by_round(system, job, metric).values())
        return Spread.of(values) if values else None

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "about": self.about,
            "samples": [asdict(sample) for sample in self.samples],
            "idle": [asdict(idle) for idle in self.idles],
            "failures": self.failures,
        }
