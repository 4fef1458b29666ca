"""Figures of the service, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters and histograms of one service."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("clara_requests", "requests by path and status", ("path", "status"), registry=own)
        self.seconds = Histogram(
            "clara_request_seconds", "from the first byte to the last", ("path",), registry=own, buckets=_SECONDS
        )
        self.first_token = Histogram(
            "clara_first_token_seconds",
            "from the arrival of a question to its first token",
            registry=own,
            buckets=_SECONDS,
        )
        self.tokens = Counter("clara_tokens", "tokens of finished answers", registry=own)
        self.running = Gauge("clara_running", "requests that are searched for or answered now", registry=own)
        self.waiting = Gauge("clara_waiting", "requests that wait for their turn", registry=own)
        self.failures = Counter("clara_failures", "faults of the service itself", registry=own)
        self.swaps = Counter("clara_swaps", "newer systems that took over", registry=own)
        self.swap_failures = Counter(
            "clara_swap_failures", "looks for a newer system that failed, by its loading or before", registry=own
        )
        self.outdated = Gauge(
            "clara_outdated", "1 while a newer system is not served because of a failure", registry=own
        )
        self.lost_lines = Counter("clara_lost_log_lines", "lines that could not be logged", registry=own)

    def text(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self._registry)
